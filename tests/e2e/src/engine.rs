//! An engine as its other users see it: by its own API, past our code.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use serde_json::Value;

use crate::containerd::Containerd;
use crate::{Endpoint, Result};

/// The label that everything of ours has.
pub(crate) const JOB_LABEL: &str = "dev.orchestra.job";

/// An engine's own API: docker's, which podman speaks too, or containerd's.
#[derive(Clone, Debug)]
pub struct Engine {
    endpoint: Endpoint,
    containerd: Option<Containerd>,
}

/// What an engine tells of a container that runs, in its own words.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// All that it tells, the output included.
    pub texts: Vec<String>,
    /// The number of its first process.
    pub pid: u64,
}

/// Everything an engine holds, one text a thing: `container NAME`, `volume NAME`, `image ID`, `image NAME`, `network NAME`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Contents(pub BTreeSet<String>);

impl Contents {
    /// What is in this and not in `other`.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).cloned().collect())
    }
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.0).finish()
    }
}

impl Engine {
    /// The engine that listens there and speaks docker's API.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            containerd: None,
        }
    }

    /// The containerd that listens there, of which `namespace` is looked at, and the folder of its driver.
    #[must_use]
    pub fn containerd(socket: PathBuf, namespace: String, state: PathBuf) -> Self {
        Self {
            endpoint: Endpoint::Unix(socket.clone()),
            containerd: Some(Containerd {
                socket,
                namespace,
                state,
            }),
        }
    }

    /// Its version.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn version(&self) -> Result<String> {
        match &self.containerd {
            Some(containerd) => containerd.version(),
            None => Ok(text(&self.endpoint.get("/version")?.json()?["Version"]).to_owned()),
        }
    }

    /// What it tells of a container that runs.
    ///
    /// # Errors
    /// If it does not answer, or has no such container.
    pub fn inspect(&self, container: &str) -> Result<Inspected> {
        if let Some(containerd) = &self.containerd {
            return containerd.inspect(container);
        }
        let told = self.endpoint.get(&format!("/containers/{container}/json"))?;
        let pid = told.json()?["State"]["Pid"].as_u64();
        let logs = self
            .endpoint
            .get(&format!("/containers/{container}/logs?stdout=1&stderr=1"))?;
        if logs.status != 200 {
            return Err(format!("the log of {container}: status {}", logs.status).into());
        }
        Ok(Inspected {
            texts: vec![told.text(), logs.text()],
            pid: pid.ok_or("the container has no process")?,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Everything it holds, whoever made it.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn contents(&self) -> Result<Contents> {
        if let Some(containerd) = &self.containerd {
            return containerd.contents();
        }
        let mut contents = self.labelled("")?;
        for image in array(&self.endpoint.get("/images/json?all=1")?.json()?) {
            contents.0.insert(format!("image {}", text(&image["Id"])));
            contents.0.extend(
                array(&image["RepoTags"])
                    .iter()
                    .map(|tag| format!("image {}", text(tag))),
            );
        }
        for network in array(&self.endpoint.get("/networks")?.json()?) {
            contents.0.insert(format!("network {}", text(&network["Name"])));
        }
        Ok(contents)
    }

    /// Everything of ours: containers, volumes and images with the label of any job.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn leftovers(&self) -> Result<Contents> {
        if let Some(containerd) = &self.containerd {
            return containerd.leftovers(None);
        }
        self.labelled(JOB_LABEL)
    }

    /// Everything of one job.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn leftovers_of(&self, job: &str) -> Result<Contents> {
        if let Some(containerd) = &self.containerd {
            return containerd.leftovers(Some(job));
        }
        self.labelled(&format!("{JOB_LABEL}={job}"))
    }

    /// Containers and volumes with a label, or all of them where it is empty.
    fn labelled(&self, label: &str) -> Result<Contents> {
        let filter = match label {
            "" => String::new(),
            label => format!("filters={}", encode(&format!("{{\"label\":[\"{label}\"]}}"))),
        };
        let mut contents = Contents::default();
        for container in array(&self.endpoint.get(&format!("/containers/json?all=1&{filter}"))?.json()?) {
            let name = container["Names"][0]
                .as_str()
                .unwrap_or("without a name")
                .trim_start_matches('/');
            contents.0.insert(format!("container {name}"));
        }
        let volumes = self.endpoint.get(&format!("/volumes?{filter}"))?.json()?;
        for volume in array(&volumes["Volumes"]) {
            contents.0.insert(format!("volume {}", text(&volume["Name"])));
        }
        Ok(contents)
    }

    /// How many containers of a job run right now.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn running(&self, job: &str) -> Result<usize> {
        if let Some(containerd) = &self.containerd {
            return containerd.running(job);
        }
        let filter = encode(&format!(
            "{{\"label\":[\"{JOB_LABEL}={job}\"],\"status\":[\"running\"]}}"
        ));
        Ok(array(
            &self
                .endpoint
                .get(&format!("/containers/json?filters={filter}"))?
                .json()?,
        )
        .len())
    }

    /// Gives an image a further name.
    ///
    /// # Errors
    /// If the engine refuses.
    pub fn tag(&self, image: &str, repository: &str, tag: &str) -> Result<()> {
        if let Some(containerd) = &self.containerd {
            return containerd.tag(image, &format!("{repository}:{tag}"));
        }
        let path = format!("/images/{image}/tag?repo={}&tag={tag}", encode(repository));
        let response = self.endpoint.send("POST", &path, &[], &[])?;
        match response.status {
            201 => Ok(()),
            status => Err(format!("tag {image}: status {status}: {}", response.text()).into()),
        }
    }

    /// Pushes an image to a registry that lets everybody in.
    ///
    /// # Errors
    /// If the engine refuses, or fails half-way.
    pub fn push_image(&self, image: &str) -> Result<()> {
        if let Some(containerd) = &self.containerd {
            return containerd.push(image);
        }
        // The engine wants the header even where there is nothing to say: `{}` in base64.
        let response = self.endpoint.send(
            "POST",
            // Which docker does not know and does not need: to it loopback's registries are trusted.
            &format!("/images/{image}/push?tlsVerify=false"),
            &[("X-Registry-Auth", "e30=")],
            &[],
        )?;
        let text = response.text();
        match response.status {
            200 if !text.contains("\"error\"") => Ok(()),
            status => Err(format!("push {image}: status {status}: {text}").into()),
        }
    }

    /// Removes an image's name, and the image with its last; one that is not there is success.
    ///
    /// # Errors
    /// If the engine refuses.
    pub fn remove_image(&self, image: &str) -> Result<()> {
        if let Some(containerd) = &self.containerd {
            return containerd.remove_image(image);
        }
        let response = self.endpoint.send("DELETE", &format!("/images/{image}"), &[], &[])?;
        match response.status {
            200 | 404 => Ok(()),
            status => Err(format!("remove {image}: status {status}: {}", response.text()).into()),
        }
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// [Percent-encoding](https://www.rfc-editor.org/rfc/rfc3986#section-2.1) of a query's value.
fn encode(value: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => (byte as char).to_string(),
        _ => format!("%{byte:02X}"),
    };
    value.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_survives_a_url() {
        assert_eq!(encode("{\"a\":[1]}"), "%7B%22a%22%3A%5B1%5D%7D");
    }
}
