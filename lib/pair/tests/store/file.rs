//! A directory as a store.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use culvert_pair::{FileStore, Store, StoreError, Stored};

use crate::promises::{self, pair};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn it_keeps_what_every_store_promises() {
    let dir = tempfile::tempdir().unwrap();
    let store = |name: &str| FileStore::new(dir.path().join(name).join("deep"));
    promises::keeps_registrations(&store("a")).await;
    promises::lets_one_writer_win(&store("b")).await;
    promises::keeps_a_code_through_a_bad_request(&store("c")).await;
    promises::certifies_the_key_that_the_code_stands_for(&store("d")).await;
    promises::keeps_a_broker(&store("e")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_brokers_at_once_one_is_certified() {
    let dir = tempfile::tempdir().unwrap();
    for (name, reissue) in [("a", false), ("b", true)] {
        let store = Arc::new(FileStore::new(dir.path().join(name)));
        promises::certifies_one_of_many(store, reissue).await;
    }
}

#[tokio::test]
async fn all_it_makes_is_closed_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let store = FileStore::new(root.clone());
    let pair = pair("mine", false);
    store.save(&pair, None).await.unwrap();
    let beside = store
        .write_beside(pair.id().as_str(), "bridge.key", b"x")
        .unwrap();
    let of_pair = root.join(pair.id().as_str());
    assert_eq!((mode(&root), mode(&of_pair)), (0o700, 0o700));
    for file in [beside, of_pair.join("pair.json"), root.join(".lock")] {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    let left: Vec<_> = fs::read_dir(&of_pair)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}: nothing half-written stays");
}

#[tokio::test]
async fn what_is_open_to_others_is_refused_with_the_command_that_closes_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let store = FileStore::new(root.clone());
    let (open, closed) = (pair("open", false), pair("closed", false));
    store.save(&open, None).await.unwrap();
    store.save(&closed, None).await.unwrap();
    let file = root.join(open.id().as_str()).join("pair.json");
    set_mode(&file, 0o640);
    let refused = store.load(open.id()).await.err().unwrap();
    let fix = format!("chmod 0600 {}", file.display());
    assert!(refused.to_string().ends_with(&fix), "{refused}");
    let listing = store.list().await.unwrap();
    assert_eq!(listing.kept.len(), 1, "the other pair works on");
    assert_eq!(listing.damaged[0].0, open.id().as_str());
    set_mode(&root, 0o750);
    for refused in [
        store.list().await.err(),
        store.load(closed.id()).await.err(),
        store.save(&pair("new", false), None).await.err(),
    ] {
        assert!(
            matches!(refused, Some(StoreError::Mode { mode: 0o750, .. })),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn a_damaged_document_is_named_without_its_content_and_keeps_no_other_from_working() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::new(dir.path().join("store"));
    let (good, bad) = (pair("good", false), pair("bad", false));
    store.save(&good, None).await.unwrap();
    store.save(&bad, None).await.unwrap();
    let file = store.dir().join(bad.id().as_str()).join("pair.json");
    let text = fs::read_to_string(&file).unwrap();
    let code = bad.code(promises::now()).unwrap().encode();
    for broken in [
        text.replace("\"name\": \"bad\"", &format!("\"name\": [\"{}\"]", *code)),
        text.replace(code.as_str(), &code.to_lowercase()),
        text.replace(bad.id().as_str(), good.id().as_str()),
        text.replacen("BEGIN PRIVATE KEY", "BEGIN", 1),
        text[..text.len() / 2].to_owned(),
        text.replace("\"version\": 1", "\"version\": 2"),
        String::new(),
    ] {
        assert_ne!(broken, text);
        fs::write(&file, &broken).unwrap();
        let listing = store.list().await.unwrap();
        assert_eq!(listing.kept.len(), 1, "{broken}");
        let said = listing.damaged[0].1.to_string();
        assert!(
            !said.contains("cvf_") && !said.contains("PRIVATE"),
            "{said}"
        );
    }
    fs::write(&file, vec![b' '; (64 << 10) + 1]).unwrap();
    assert_eq!(store.list().await.unwrap().damaged.len(), 1);
}

#[tokio::test]
async fn names_cannot_leave_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::new(dir.path().join("store"));
    for name in ["../x", "", "a/b", ".lock", "A"] {
        assert!(
            matches!(store.read(name).await, Err(StoreError::Name { .. })),
            "{name}"
        );
        let written = store.write(name, b"x", None).await;
        assert!(matches!(written, Err(StoreError::Name { .. })), "{name}");
    }
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
}

#[test]
fn a_flag_that_names_no_store_says_what_does() {
    let said = |text: &str| Stored::open(text).err().unwrap().to_string();
    for text in ["", "file:", "/etc/x", "s3:bucket"] {
        assert!(
            said(text).contains("file:/path or secret:NAMESPACE"),
            "{text}"
        );
    }
    assert!(said("https://vault.example:8200").contains("later version"));
    for text in ["secret:Bad_Name", "secret:", "secret:ns/", "secret:ns/../x"] {
        assert!(said(text).contains("cannot name"), "{text}: {}", said(text));
    }
    assert!(
        said("secret:ns").contains("outside of a cluster"),
        "{}",
        said("secret:ns")
    );
}
