//! What the tests are given: an engine, registries, images and the binary.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;

use crate::{Engine, KnownDriver, Orchestra, Result};

/// A registry's user name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl Credentials {
    /// The value of an `Authorization` header.
    #[must_use]
    pub fn basic(&self) -> String {
        let pair = format!("{}:{}", self.user, self.password);
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "credentials of {}", self.user)
    }
}

/// What `cargo xtask e2e` says by environment variables.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// The driver under test: `docker`, `podman`.
    pub driver: String,
    /// The environment variable that tells it where the engine is.
    pub host_variable: &'static str,
    /// Whether nobody else uses the engine.
    pub is_private: bool,
    /// The engine.
    pub engine: Engine,
    /// An image with a shell that the engine has.
    pub image: String,
    /// The BuildKit image that the engine has.
    pub buildkit_image: String,
    /// The BuildKit image that needs no privileges, which is in the engine too.
    pub buildkit_rootless_image: String,
    /// `HOST:PORT` of a registry that lets everybody in.
    pub registry: String,
    /// `HOST:PORT` of a registry that asks for [`credentials`](Self::credentials).
    pub registry_auth: String,
    /// What that registry asks for.
    pub credentials: Credentials,
    binary: PathBuf,
}

impl Fixture {
    /// The fixture, or `None` where no engine is given to test on.
    ///
    /// # Errors
    /// If a part of it is missing.
    pub fn from_env() -> Result<Option<Self>> {
        let Ok(driver) = env::var("ORCHESTRA_TEST_DRIVER") else {
            return Ok(None);
        };
        let get = |name: &str| env::var(name).map_err(|_| format!("{name} is not set; run `cargo xtask e2e`"));
        let known = KnownDriver::chosen().ok_or_else(|| format!("the tests know no driver {driver:?}"))?;
        let (host_variable, default) = known.host();
        let host = env::var(host_variable).unwrap_or_else(|_| default.to_owned());
        Ok(Some(Self {
            driver,
            host_variable,
            is_private: env::var("ORCHESTRA_TEST_ENGINE").is_ok_and(|engine| engine != "host"),
            engine: known.look_at(&host)?,
            image: get("ORCHESTRA_TEST_IMAGE")?,
            buildkit_image: get("ORCHESTRA_TEST_BUILDKIT_IMAGE")?,
            buildkit_rootless_image: get("ORCHESTRA_TEST_BUILDKIT_ROOTLESS_IMAGE")?,
            registry: get("ORCHESTRA_TEST_REGISTRY")?,
            registry_auth: get("ORCHESTRA_TEST_REGISTRY_AUTH")?,
            credentials: Credentials {
                user: get("ORCHESTRA_TEST_REGISTRY_USER")?,
                password: get("ORCHESTRA_TEST_REGISTRY_PASSWORD")?,
            },
            binary: binary()?,
        }))
    }

    /// The engine's address, as its clients have it.
    #[must_use]
    pub fn host(&self) -> String {
        self.engine.endpoint().to_string()
    }

    /// A command line of the binary, in a directory of its own.
    pub fn orchestra<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Orchestra {
        Orchestra::new(&self.binary, args)
    }

    /// The same of a copy of the binary.
    pub fn orchestra_at<S: AsRef<OsStr>>(&self, binary: &Path, args: impl IntoIterator<Item = S>) -> Orchestra {
        Orchestra::new(binary, args)
    }

    /// The binary.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The repository's root, which has the examples.
    #[must_use]
    pub fn repository() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }
}

fn binary() -> Result<PathBuf> {
    let built = || -> Option<PathBuf> {
        // Test programs are in `deps` beside the binaries.
        let own = env::current_exe().ok()?;
        Some(own.parent()?.parent()?.join("orchestra"))
    };
    let binary = env::var_os("ORCHESTRA_BIN")
        .map(PathBuf::from)
        .or_else(built)
        .filter(|path| path.is_file());
    binary.ok_or_else(|| "there is no `orchestra` to test: build it, or set ORCHESTRA_BIN to it".into())
}
