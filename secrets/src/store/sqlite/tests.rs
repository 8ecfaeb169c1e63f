//! The encrypted file, misused in every way that is known.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn key(key: &str) -> SecretKey {
    SecretKey::new(key).unwrap()
}

fn store(dir: &Path, passphrase: &str) -> SqliteStore {
    SqliteStore::new(dir.join("secrets.db"), SqliteKey::Passphrase(passphrase.into()))
}

fn pipeline() -> Scope {
    Scope::pipeline("deploy").unwrap()
}

async fn filled(dir: &Path) -> SqliteStore {
    let store = store(dir, "correct horse");
    store
        .set(&Scope::Global, &key("TOKEN"), &"hunter2-global".into())
        .await
        .unwrap();
    store
        .set(&pipeline(), &key("TOKEN"), &"hunter2-pipeline".into())
        .await
        .unwrap();
    store
}

async fn get(store: &SqliteStore, scope: &Scope, name: &str) -> Result<Option<Vec<u8>>> {
    let value = store.get(scope, &key(name)).await?;
    Ok(value.map(|value| value.expose().to_vec()))
}

fn sql(dir: &Path, sql: &str) {
    Connection::open(dir.join("secrets.db"))
        .unwrap()
        .execute_batch(sql)
        .unwrap();
}

#[tokio::test]
async fn what_is_set_is_read_by_another_process_and_is_not_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let large = vec![0; SecretValue::MAX];
    filled(dir.path())
        .await
        .set(&Scope::Global, &key("large"), &SecretValue::new(large.clone()))
        .await
        .unwrap();
    let other = store(dir.path(), "correct horse");
    assert_eq!(
        get(&other, &Scope::Global, "TOKEN").await.unwrap().unwrap(),
        b"hunter2-global"
    );
    assert_eq!(
        get(&other, &pipeline(), "TOKEN").await.unwrap().unwrap(),
        b"hunter2-pipeline"
    );
    assert_eq!(get(&other, &Scope::Global, "large").await.unwrap().unwrap(), large);
    assert_eq!(get(&other, &pipeline(), "NONE").await.unwrap(), None);
    let file = std::fs::read(dir.path().join("secrets.db")).unwrap();
    assert!(!file.windows(7).any(|window| window == b"hunter2"));
    assert_eq!(
        std::fs::metadata(dir.path().join("secrets.db"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    let listed = other.list().await.unwrap();
    assert_eq!(listed.len(), 3);
    assert!(listed.iter().all(|listed| listed.updated.is_some()));
    assert!(other.remove(&pipeline(), &key("TOKEN")).await.unwrap());
    assert!(!other.remove(&pipeline(), &key("TOKEN")).await.unwrap());
}

#[tokio::test]
async fn a_wrong_key_is_told_apart_from_a_damaged_file() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let wrong = store(dir.path(), "wrong");
    let refused = [
        get(&wrong, &Scope::Global, "TOKEN").await.unwrap_err(),
        wrong.set(&Scope::Global, &key("X"), &"new".into()).await.unwrap_err(),
        wrong.remove(&Scope::Global, &key("TOKEN")).await.unwrap_err(),
        wrong.rekey(SqliteKey::Passphrase("x".into())).await.unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains("passphrase does not open"), "{error}");
    }
    let right = store(dir.path(), "correct horse");
    for (damage, why) in [
        ("UPDATE secrets SET sealed = zeroblob(length(sealed))", "was changed"),
        ("UPDATE vault SET salt = zeroblob(16)", "header was changed"),
        ("UPDATE vault SET memory = 4000000000", "header was changed"),
        ("DELETE FROM vault", "header is missing"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = filled(dir.path()).await;
        sql(dir.path(), damage);
        let error = get(&store, &Scope::Global, "TOKEN").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{damage}");
        assert!(
            error.message().contains("is damaged") && error.message().contains(why),
            "{error}"
        );
    }
    std::fs::write(
        dir.path().join("secrets.db"),
        "no database at all, and long enough to look like one ".repeat(30),
    )
    .unwrap();
    let error = get(&right, &Scope::Global, "TOKEN").await.unwrap_err();
    assert!(
        error.message().contains("is damaged: it is no SQLite database"),
        "{error}"
    );
}

#[tokio::test]
async fn rows_that_are_swapped_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    sql(
        dir.path(),
        "CREATE TEMP TABLE t AS SELECT * FROM secrets WHERE scope = 'global';
         UPDATE secrets SET nonce = (SELECT nonce FROM t), sealed = (SELECT sealed FROM t) WHERE scope <> 'global'",
    );
    let error = get(&store, &pipeline(), "TOKEN").await.unwrap_err();
    assert!(error.message().contains("belongs elsewhere"), "{error}");
    assert!(get(&store, &Scope::Global, "TOKEN").await.unwrap().is_some());
}

#[tokio::test]
async fn after_a_rekey_only_the_new_key_opens_the_file_also_for_who_had_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let store_of_another_process = filled(dir.path()).await;
    let path = dir.path().join("key");
    std::fs::write(&path, [7; 32]).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let store = store(dir.path(), "correct horse");
    assert_eq!(store.rekey(SqliteKey::File(path.clone())).await.unwrap(), 2);
    for stale in [&store, &store_of_another_process] {
        assert!(
            get(stale, &pipeline(), "TOKEN")
                .await
                .unwrap_err()
                .message()
                .contains("does not open")
        );
    }
    let new = SqliteStore::new(dir.path().join("secrets.db"), SqliteKey::File(path));
    assert_eq!(
        get(&new, &pipeline(), "TOKEN").await.unwrap().unwrap(),
        b"hunter2-pipeline"
    );
}

#[tokio::test]
async fn a_key_file_that_others_can_read_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let store = SqliteStore::new(dir.path().join("secrets.db"), SqliteKey::File(path.clone()));
    let set = async || store.set(&Scope::Global, &key("K"), &"value".into()).await;
    assert!(set().await.unwrap_err().message().contains("there is no key file"));
    std::fs::write(&path, [7; 32]).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = set().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(
        error.message().contains("(mode 640)") && error.hint().unwrap().contains("chmod 600"),
        "{error:?}"
    );
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    std::fs::write(&path, [7; 31]).unwrap();
    assert!(set().await.unwrap_err().message().contains("has 31 bytes"));
    assert!(!dir.path().join("secrets.db").exists());
    std::fs::write(&path, [7; 32]).unwrap();
    set().await.unwrap();
}

#[tokio::test]
async fn a_database_that_is_locked_or_can_not_be_made_is_told_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    let other = Connection::open(dir.path().join("secrets.db")).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let error = store
        .set(&Scope::Global, &key("TOKEN"), &"new".into())
        .await
        .unwrap_err();
    assert!(error.message().contains("kept it locked"), "{error}");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(
        get(&store, &Scope::Global, "TOKEN").await.unwrap().unwrap(),
        b"hunter2-global"
    );
    let nowhere = SqliteStore::new("/no/such/dir/db", SqliteKey::Passphrase("p".into()));
    assert!(
        get(&nowhere, &Scope::Global, "K").await.unwrap().is_none(),
        "what is not there has nothing"
    );
    assert!(
        nowhere
            .set(&Scope::Global, &key("K"), &"v".into())
            .await
            .unwrap_err()
            .message()
            .contains("make the secrets' file")
    );
}

#[test]
fn a_read_only_database_has_words_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE t (x)")
        .unwrap();
    let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let error = connection.execute_batch("INSERT INTO t VALUES (1)").unwrap_err();
    let error = store(dir.path(), "x").0.failed("write to", &error);
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(error.message().contains("can't be written to"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let writers = (0..8).map(|writer| {
        let store = store(dir.path(), "p");
        tokio::spawn(async move {
            for number in 0..5 {
                let name = key(&format!("k{writer}-{number}"));
                store.set(&Scope::Global, &name, &name.as_str().into()).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let reader = store(dir.path(), "p");
    assert_eq!(reader.list().await.unwrap().len(), 40);
    assert_eq!(get(&reader, &Scope::Global, "k7-4").await.unwrap().unwrap(), b"k7-4");
}

#[tokio::test]
async fn nothing_of_the_key_is_in_debug() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!format!("{:?}", store(dir.path(), "correct horse")).contains("horse"));
}
