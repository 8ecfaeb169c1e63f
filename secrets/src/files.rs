//! References in files that are put into containers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use orchestra::{InjectedFile, Result};
use serde_json::Value;
use zeroize::{Zeroize, Zeroizing};

use crate::{JobSecrets, Reference, SecretKey, SecretValue};

/// The file with its references resolved, and its value if it is one secret as a whole. That is redacted from now on, and so
/// are credentials for registries that stand in it, given as references or not.
pub(crate) async fn resolve(file: &InjectedFile, job: &JobSecrets) -> Result<(InjectedFile, Option<SecretValue>)> {
    let mut file = file.clone();
    let Ok(text) = std::str::from_utf8(&file.content) else {
        let value = literal(&file, job)?;
        return Ok((file, value));
    };
    // Any other file may begin so too: `secret: false`.
    if let Ok(Some(key)) = SecretKey::of_reference(text) {
        let value = job.resolve(&Reference::of(key)).await;
        let value = value.map_err(|error| error.with("file", &file.path))?;
        file.content = zeroed(value.expose().to_vec());
        return Ok((file, Some(value)));
    }
    let is_json = file.path.as_str().ends_with(".json");
    if let Some(mut json) = is_json.then(|| serde_json::from_str(text).ok()).flatten().map(Zeroed) {
        let mut keys = Vec::new();
        references(&json.0, &mut keys);
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            let value = job.resolve(&Reference::of(key.clone())).await;
            let value = value.map_err(|error| error.with("file", &file.path))?;
            value.text(&format!("the secret {key} for the file {}", file.path))?;
            values.push((format!("secret:{key}"), value));
        }
        replace(&mut json.0, &values);
        credentials(&json.0, job)?;
        if !values.is_empty() {
            file.content = zeroed(json.0.to_string().into_bytes());
        }
    }
    let value = literal(&file, job)?;
    Ok((file, value))
}

/// The content of a file that was said to be a secret.
fn literal(file: &InjectedFile, job: &JobSecrets) -> Result<Option<SecretValue>> {
    let value = file.secret.then(|| SecretValue::new(file.content.to_vec()));
    let what = format!("the secret file {}", file.path);
    let masked = value.iter().try_for_each(|value| job.mask_given(&what, value));
    masked.map_err(|error| error.with("file", &file.path))?;
    Ok(value)
}

/// Bytes that are overwritten when nobody has them any more.
pub(crate) fn zeroed(bytes: Vec<u8>) -> Bytes {
    Bytes::from_owner(Zeroizing::new(bytes))
}

fn references(json: &Value, keys: &mut Vec<SecretKey>) {
    match json {
        Value::String(text) => keys.extend(SecretKey::of_reference(text).ok().flatten()),
        Value::Array(items) => items.iter().for_each(|item| references(item, keys)),
        Value::Object(fields) => fields.values().for_each(|value| references(value, keys)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn replace(json: &mut Value, values: &[(String, SecretValue)]) {
    match json {
        Value::String(text) => {
            let value = values.iter().find(|(reference, _)| reference == text);
            if let Some(value) = value.and_then(|(_, value)| std::str::from_utf8(value.expose()).ok()) {
                value.clone_into(text);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, values)),
        Value::Object(fields) => fields.values_mut().for_each(|value| replace(value, values)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The registries' credentials of a client's `config.json`: in two fields, or as base64 of `user:password`.
fn credentials(json: &Value, job: &JobSecrets) -> Result<()> {
    let auths = json.get("auths").and_then(Value::as_object);
    for auth in auths.into_iter().flat_map(serde_json::Map::values) {
        let field = |name: &str| auth.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        if let (Some(username), Some(password)) = (field("username"), field("password")) {
            job.mask_credentials(username, password)?;
        }
        let pair = field("auth").and_then(|auth| String::from_utf8(STANDARD.decode(auth).ok()?).ok());
        if let Some(mut pair) = pair {
            if let Some((username, password)) = pair.split_once(':') {
                job.mask_credentials(username, password)?;
            }
            pair.zeroize();
        }
        for token in ["identitytoken", "registrytoken"].into_iter().filter_map(field) {
            job.mask(&token.into())?;
        }
    }
    Ok(())
}

/// A JSON value with secrets in it, for as long as it is looked at.
pub(crate) struct Zeroed(pub(crate) Value);

impl Drop for Zeroed {
    fn drop(&mut self) {
        zero(&mut self.0);
    }
}

/// Overwrites every text below.
fn zero(json: &mut Value) {
    match json {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(zero),
        Value::Object(fields) => fields.values_mut().for_each(zero),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
