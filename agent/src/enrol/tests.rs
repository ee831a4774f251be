use std::os::unix::fs::PermissionsExt as _;

use culvert_enrol::{Authority, Request};

use super::*;

fn made(ca: &Authority, key: &Key, cluster: &str, now_s: u64) -> String {
    let request = Request::read(&key.request().unwrap()).unwrap();
    let id = cluster.parse().unwrap();
    let signed = ca.sign_agent(&request, &id, now_s, 3600).unwrap();
    certificates([&signed.der[..]])
}

struct Rig {
    dir: tempfile::TempDir,
    ca: Authority,
    bundle: String,
    identity: Identity,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::generate(unix_s()).unwrap();
    let bundle = certificates([ca.certificate_der()]);
    let key = Key::generate().unwrap();
    let chain = made(&ca, &key, "a", unix_s());
    assert!(read(dir.path()).unwrap().is_none());
    keep(dir.path(), &key, &chain, &bundle).unwrap();
    let known = read(dir.path()).unwrap().unwrap();
    let options = session_tls(
        dir.path(),
        &ClientTlsOptions {
            roots: Roots::Pin(culvert_net::tls::SpkiPin([0; 32])),
            ..ClientTlsOptions::default()
        },
    );
    let tls = Arc::new(ClientTls::load(options).unwrap());
    let expiry = crate::metrics::AgentMetrics::new("")
        .certificate_expiry
        .clone();
    let identity = Identity::new(dir.path().to_owned(), known, tls, expiry);
    Rig {
        dir,
        ca,
        bundle,
        identity,
    }
}

#[test]
fn an_identity_is_kept_for_its_owner_alone_and_damage_is_named() {
    let rig = rig();
    let path = rig.dir.path().join(IDENTITY_FILE);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let known = read(rig.dir.path()).unwrap().unwrap();
    assert_eq!(known.cluster.as_str(), "a");
    assert_eq!(
        rig.identity.expiry.get(),
        i64::try_from(known.validity.until_unix_s).unwrap()
    );
    let whole = fs::read(&path).unwrap();
    for cut in (0..whole.len() - 1).step_by(97) {
        fs::write(&path, &whole[..cut]).unwrap();
        let why = read(rig.dir.path()).unwrap_err().to_string();
        assert!(why.contains("damaged"), "{cut}: {why}");
    }
    fs::write(&path, &whole).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let why = read(rig.dir.path()).unwrap_err().to_string();
    assert!(why.contains("chmod 600"), "{why}");
}

#[test]
fn a_renewal_is_taken_for_the_key_that_asked_and_for_the_own_cluster_alone() {
    let rig = rig();
    let now_s = unix_s();
    let unasked = made(&rig.ca, &Key::generate().unwrap(), "a", now_s);
    assert!(matches!(
        rig.identity.take(&unasked, &rig.bundle),
        Err(IdentityError::Unasked(_))
    ));
    let key = Key::generate().unwrap();
    let (good, foreign) = (
        made(&rig.ca, &key, "a", now_s + 60),
        made(&rig.ca, &key, "b", now_s + 60),
    );
    rig.identity.inner.lock().asked = Some(key);
    for wrong in [unasked.as_str(), &foreign, "nonsense", &rig.bundle] {
        assert!(rig.identity.take(wrong, &rig.bundle).is_err());
    }
    assert!(rig.identity.take(&good, "nonsense").is_err());
    let before = read(rig.dir.path()).unwrap().unwrap();
    assert!(rig.identity.take(&good, &rig.bundle).unwrap());
    let after = read(rig.dir.path()).unwrap().unwrap();
    assert_eq!(after, rig.identity.known());
    assert!(after.validity.until_unix_s > before.validity.until_unix_s);
    assert!(rig.identity.take(&good, &rig.bundle).is_err(), "once");
}

#[test]
fn the_cas_alone_are_kept_beside_the_certificate() {
    let rig = rig();
    let more = Authority::generate(unix_s()).unwrap();
    let both = certificates([rig.ca.certificate_der(), more.certificate_der()]);
    let before = rig.identity.known();
    assert!(!rig.identity.take("", &both).unwrap());
    assert_eq!(
        fs::read_to_string(rig.dir.path().join(CA_FILE)).unwrap(),
        both
    );
    assert_eq!(read(rig.dir.path()).unwrap().unwrap(), before);
    assert!(rig.identity.take("", "").is_err(), "never none");
}
