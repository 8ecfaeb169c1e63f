//! A step's output on its way to `onOutput`: text, of which no character is cut in two.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use orchestra::{LogChunk, OutputSink, OutputStream, Result};
use tokio::sync::mpsc;

use crate::engine::Told;

const STREAMS: [OutputStream; 2] = [OutputStream::Stdout, OutputStream::Stderr];

/// A clone is the same.
#[derive(Clone)]
pub(super) struct Tap {
    id: u64,
    told: mpsc::Sender<Told>,
    /// The beginning of a character whose end has not come yet, of each stream.
    partial: Arc<Mutex<[Vec<u8>; 2]>>,
}

impl Tap {
    pub(super) fn new(id: u64, told: mpsc::Sender<Told>) -> Self {
        Self {
            id,
            told,
            partial: Arc::default(),
        }
    }

    /// What of the bytes is whole, with what came before.
    fn whole(&self, stream: OutputStream, bytes: &[u8], last: bool) -> String {
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        let held = &mut partial[stream as usize];
        held.extend_from_slice(bytes);
        let end = match std::str::from_utf8(held) {
            // Bytes that are no text at all are not waited for.
            Err(error) if error.error_len().is_none() && !last => error.valid_up_to(),
            Err(error) if !last => {
                let after = error.valid_up_to() + error.error_len().unwrap_or(0);
                let rest = std::str::from_utf8(&held[after..]);
                match rest {
                    Err(rest) if rest.error_len().is_none() => after + rest.valid_up_to(),
                    _ => held.len(),
                }
            }
            _ => held.len(),
        };
        let rest = held.split_off(end);
        let whole = std::mem::replace(held, rest);
        String::from_utf8_lossy(&whole).into_owned()
    }

    async fn tell(&self, stream: OutputStream, text: String) {
        if text.is_empty() {
            return;
        }
        let id = self.id;
        // A script that has ended does not listen; its step is ended by its end.
        self.told.send(Told::Output { id, stream, text }).await.ok();
    }

    /// Tells what was held back.
    pub(super) async fn finish(&self) {
        for stream in STREAMS {
            let text = self.whole(stream, b"", true);
            self.tell(stream, text).await;
        }
    }
}

#[async_trait]
impl OutputSink for Tap {
    async fn write(&mut self, chunk: LogChunk) -> Result<()> {
        let text = self.whole(chunk.stream, &chunk.bytes, false);
        self.tell(chunk.stream, text).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_character_that_is_cut_in_two_is_put_together() {
        let (told, mut heard) = mpsc::channel(9);
        let mut tap = Tap::new(1, told);
        let text = "añ€😀z".as_bytes();
        for byte in text {
            let bytes = vec![*byte].into();
            let stream = OutputStream::Stdout;
            tap.write(LogChunk { stream, bytes }).await.unwrap();
        }
        let bytes = b"\xff|\xc3".to_vec().into();
        let stream = OutputStream::Stderr;
        tap.write(LogChunk { stream, bytes }).await.unwrap();
        tap.finish().await;
        drop(tap);
        let mut all = Vec::new();
        while let Some(Told::Output { stream, text, .. }) = heard.recv().await {
            all.push((stream, text));
        }
        let stdout: Vec<&str> = all
            .iter()
            .filter(|(stream, _)| *stream == OutputStream::Stdout)
            .map(|(_, text)| text.as_str())
            .collect();
        assert_eq!(stdout, ["a", "ñ", "€", "😀", "z"]);
        let stderr: Vec<&str> = all
            .iter()
            .filter(|(stream, _)| *stream == OutputStream::Stderr)
            .map(|(_, text)| text.as_str())
            .collect();
        assert_eq!(stderr, ["\u{fffd}|", "\u{fffd}"]);
    }
}
