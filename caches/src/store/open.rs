//! Where a store is, and how it is reached.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use orchestra::{Error, ExposeSecret, Result, SecretString};

use super::{Inner, Store};

/// How long one request may take; a pack is its largest body.
const REQUEST: Duration = Duration::from_secs(60);
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a request that failed for a passing reason is made again, and for how long.
const RETRIES: usize = 4;
const RETRYING: Duration = Duration::from_secs(20);

/// A store's address, and how it is used.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StoreOptions {
    /// `file:///var/cache/orchestra`, or `s3://BUCKET/PREFIX`.
    pub url: String,
    /// What an S3 store needs beside its address.
    pub s3: S3Options,
    /// How hard to compress, 1 to 19; 3 where not given.
    pub level: Option<i32>,
}

/// What an S3 store needs. Where nothing is said of credentials and region, the `AWS_*` variables do, as in other programs.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct S3Options {
    /// Where it answers, if it is not Amazon's own: `https://s3.example.com`.
    pub endpoint: Option<String>,
    /// The bucket's region.
    pub region: Option<String>,
    /// Who asks.
    pub access_key_id: Option<String>,
    /// The key's other half.
    pub secret_access_key: Option<SecretString>,
}

impl Store {
    /// A store by its address. Nothing is asked and nothing is made yet.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](orchestra::ErrorKind::InvalidInput) for an address or options that can't be.
    pub fn open(options: &StoreOptions) -> Result<Self> {
        let level = options.level.unwrap_or(3);
        if !(1..=19).contains(&level) {
            return Err(Error::invalid(format!(
                "the compression level {level} is not in 1 to 19"
            )));
        }
        let url = options.url.as_str();
        if let Some(path) = url.strip_prefix("file://") {
            return Self::folder(path, level);
        }
        if let Some(rest) = url.strip_prefix("s3://") {
            let objects = bucket(rest, &options.s3)?;
            return Ok(Self::new(objects, url.to_owned(), None, level));
        }
        Err(Error::invalid(format!("{url:?} is not the address of a cache store"))
            .with_hint("write `file:///a/folder` or `s3://bucket/prefix`"))
    }

    /// A store in objects that are reached by other means. `address` is shown to people.
    #[must_use]
    pub fn in_objects(objects: Arc<dyn ObjectStore>, address: impl Into<String>) -> Self {
        Self::new(objects, address.into(), None, 3)
    }

    fn folder(path: &str, level: i32) -> Result<Self> {
        if !path.starts_with('/') {
            return Err(
                Error::invalid(format!("the cache store `file://{path}` has no absolute path"))
                    .with_hint("write three slashes: `file:///a/folder`"),
            );
        }
        let folder = PathBuf::from(path);
        // It can't be used before it is there, and is made by the first persist.
        let objects = LocalFileSystem::new();
        let inside = object_store::path::Path::from_absolute_path(&folder)
            .map_err(|error| Error::invalid(format!("the cache store `file://{path}` is no path: {error}")))?;
        let objects = PrefixStore::new(objects, inside);
        Ok(Self::new(
            Arc::new(objects),
            format!("file://{path}"),
            Some(folder),
            level,
        ))
    }

    fn new(objects: Arc<dyn ObjectStore>, address: String, folder: Option<PathBuf>, level: i32) -> Self {
        Self(Arc::new(Inner {
            objects,
            address,
            folder,
            level,
            known: AtomicBool::new(false),
            bad: Mutex::new(HashSet::new()),
        }))
    }
}

fn bucket(rest: &str, options: &S3Options) -> Result<Arc<dyn ObjectStore>> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(Error::invalid("the cache store's address names no bucket").with_hint("write `s3://bucket/prefix`"));
    }
    if options.access_key_id.is_some() != options.secret_access_key.is_some() {
        return Err(Error::invalid(
            "of the cache store's access_key_id and secret_access_key only one is given",
        ));
    }
    // The client takes what the process has chosen, and has no own one. Another choice stays as it is.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = ClientOptions::new().with_timeout(REQUEST).with_connect_timeout(CONNECT);
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(4),
            base: 2.,
        },
        max_retries: RETRIES,
        retry_timeout: RETRYING,
    };
    let mut builder = from_environment(options)
        .with_bucket_name(bucket)
        .with_client_options(client)
        .with_retry(retry);
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(endpoint) = builder.get_config_value(&AmazonS3ConfigKey::Endpoint) {
        let plain = endpoint.starts_with("http://");
        if !plain && !endpoint.starts_with("https://") {
            return Err(Error::invalid(format!(
                "the cache store's endpoint {endpoint:?}, of the configuration or of AWS_ENDPOINT_URL, begins neither with \
                 http:// nor https://"
            )));
        }
        // As other programs have it: whoever names such an endpoint means it.
        builder = builder.with_allow_http(plain);
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let (Some(id), Some(secret)) = (&options.access_key_id, &options.secret_access_key) {
        builder = builder
            .with_access_key_id(id)
            .with_secret_access_key(secret.expose_secret());
    }
    let store = builder
        .build()
        .map_err(|error| Error::invalid(format!("the cache store s3://{rest} can't be used: {error}")))?;
    Ok(match prefix.trim_matches('/') {
        "" => Arc::new(store),
        prefix => Arc::new(PrefixStore::new(store, prefix)),
    })
}

/// What the `AWS_*` variables say. Credentials that are given are not mixed with theirs: a session's token belongs to its key.
/// Of their endpoints the one for S3 alone goes before the one for all, and one that is given before both.
fn from_environment(options: &S3Options) -> AmazonS3Builder {
    type Key = AmazonS3ConfigKey;
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.to_str().filter(|name| name.starts_with("AWS_"))?;
        let key: Key = name.to_ascii_lowercase().parse().ok()?;
        Some((key, value.into_string().ok().filter(|value| !value.is_empty())?))
    });
    let is_given = |key: &Key| match key {
        Key::Token => options.access_key_id.is_some(),
        Key::Endpoint | Key::S3Endpoint => options.endpoint.is_some(),
        _ => false,
    };
    let is_of_s3 = |(key, _): &(Key, String)| *key == Key::S3Endpoint;
    let (of_s3, others): (Vec<_>, Vec<_>) = variables.filter(|(key, _)| !is_given(key)).partition(is_of_s3);
    // What comes last holds.
    let of_s3 = of_s3.into_iter().map(|(_, endpoint)| (Key::Endpoint, endpoint));
    let set = |builder: AmazonS3Builder, (key, value)| builder.with_config(key, value);
    others.into_iter().chain(of_s3).fold(AmazonS3Builder::new(), set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        let options = StoreOptions {
            url: url.to_owned(),
            ..StoreOptions::default()
        };
        format!("{:?}", Store::open(&options).unwrap_err())
    }

    #[test]
    fn an_address_that_can_not_be_is_refused_with_what_to_write() {
        assert!(refused("/var/cache").contains("file:///a/folder"));
        assert!(refused("file://relative").contains("three slashes"));
        assert!(refused("s3:///x").contains("names no bucket"));
        let level = StoreOptions {
            url: "file:///x".into(),
            level: Some(40),
            ..StoreOptions::default()
        };
        assert!(Store::open(&level).is_err());
    }

    #[test]
    fn half_a_pair_of_credentials_is_refused_and_a_whole_one_never_shown() {
        let mut options = StoreOptions {
            url: "s3://bucket/prefix".to_owned(),
            ..StoreOptions::default()
        };
        options.s3.secret_access_key = Some("hunter2".to_owned().into());
        assert!(Store::open(&options).is_err());
        options.s3.access_key_id = Some("me".to_owned());
        let store = Store::open(&options).unwrap();
        assert!(!format!("{options:?} {store:?}").contains("hunter2"));
    }
}
