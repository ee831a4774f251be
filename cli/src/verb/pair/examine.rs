//! What `validate` and `debug` look at.

use std::path::Path;

use culvert_net::crypto::read_private_within;
use culvert_pair::{Chain, Identity, Kept, Store as _, describe};
use culvert_proto::pair::{RendezvousId, Role};
use serde_json::{Value, json};

use super::reach::{Outer, reach};
use super::{now_unix_s, of_store, open, open_state, relays};
use crate::args::pair::{Examine, Side};
use crate::error::{CliError, Result};

/// Longest certificate or key file of a pair.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// A certificate with less than that to live is named, s.
const SOON_S: u64 = 14 * 86_400;

/// One thing that was looked at.
pub(super) struct Check {
    pub(super) what: String,
    pub(super) is_good: bool,
    pub(super) seen: String,
    pub(super) fix: String,
}

/// All that was looked at. No secrets.
#[derive(Default)]
pub(super) struct Report {
    pub(super) checks: Vec<Check>,
    /// Public parts of certificates and registrations.
    pub(super) pairs: Vec<Value>,
}

impl Check {
    pub(super) fn good(what: &str, seen: impl Into<String>) -> Check {
        Check {
            what: what.to_owned(),
            is_good: true,
            seen: seen.into(),
            fix: String::new(),
        }
    }

    pub(super) fn bad(what: &str, seen: impl Into<String>, fix: &str) -> Check {
        Check {
            what: what.to_owned(),
            is_good: false,
            seen: seen.into(),
            fix: fix.to_owned(),
        }
    }

    pub(super) fn json(&self) -> Value {
        let state = if self.is_good { "ok" } else { "FAILED" };
        let fix = Some(&self.fix).filter(|fix| !fix.is_empty());
        json!({"check": self.what, "state": state, "seen": self.seen, "fix": fix})
    }
}

/// Looks at everything that the flags name.
pub(super) async fn examine(args: &Examine) -> Result<Report> {
    let mut report = Report::default();
    let mut places = relays(&args.relays)?;
    let outer = Outer::new(args)?;
    let wanted = match &args.info_hash {
        Some(digits) => Some(digits.parse::<RendezvousId>().map_err(|why| {
            CliError::usage("this is no info hash", why, "copy the 64 digits as a whole")
        })?),
        None => None,
    };
    if let (Some(cert), Some(key), Some(ca)) = (&args.tls_cert, &args.tls_key, &args.tls_ca) {
        report.files(cert, key, ca, args.role, wanted);
    }
    if let Some(text) = &args.store {
        let store = open(text, &args.kube)?;
        report.store(&store, wanted, &mut places).await;
    }
    if let Some(text) = &args.state {
        let store = open_state(text, &args.kube)?;
        report.state(&store, wanted).await;
    }
    places.dedup();
    if report.checks.is_empty() && places.is_empty() {
        let fix = "give --store, --state, --tls-cert with its key and CA, or --relay";
        return Err(CliError::usage(
            "there is nothing to look at",
            "no flags",
            fix,
        ));
    }
    for place in &places {
        report.checks.extend(reach(place, &outer).await);
    }
    Ok(report)
}

impl Report {
    fn files(
        &mut self,
        cert: &Path,
        key: &Path,
        ca: &Path,
        role: Option<Side>,
        wanted: Option<RendezvousId>,
    ) {
        let what = format!("certificate {}", cert.display());
        let identity = match read_identity(cert, key, ca) {
            Ok(identity) => identity,
            Err(why) => {
                let fix = "give the certificate, its own key (mode 0600) and the pair's CA";
                return self.checks.push(Check::bad(&what, why.to_string(), fix));
            }
        };
        let role = match role {
            Some(Side::Bridge) => Role::Bridge,
            Some(Side::Broker) => Role::Broker,
            None => role_of(identity.chain()),
        };
        self.chain(&what, identity.chain(), role, wanted);
        self.pairs.push(public(identity.chain(), role));
    }

    async fn store(
        &mut self,
        store: &culvert_pair::Stored,
        wanted: Option<RendezvousId>,
        places: &mut Vec<String>,
    ) {
        let what = format!("store {}", store.place());
        let listing = match store.list().await {
            Ok(listing) => listing,
            Err(why) => {
                let why = of_store(&why);
                return self.checks.push(Check::bad(&what, why.seen, &why.fix));
            }
        };
        if listing.kept.is_empty() && listing.damaged.is_empty() {
            let fix = "culvert pair init or culvert pair register makes a pair";
            self.checks.push(Check::bad(&what, "no pair in it", fix));
        }
        for (name, why) in &listing.damaged {
            let fix = "restore it from a copy, or remove it and register the broker again";
            self.checks
                .push(Check::bad(&format!("{what}: {name}"), why.to_string(), fix));
        }
        for kept in &listing.kept {
            self.registration(&what, kept, wanted);
            for relay in kept.registration.relays() {
                if !places.contains(relay) {
                    places.push(relay.clone());
                }
            }
        }
    }

    fn registration(&mut self, store: &str, kept: &Kept, wanted: Option<RendezvousId>) {
        let registration = &kept.registration;
        let what = format!("{store}: {} ({})", registration.id(), registration.name());
        self.chain(&what, registration.bridge().chain(), Role::Bridge, wanted);
        let now = now_unix_s();
        if let Some(voucher) = registration.voucher() {
            let what = format!("{what}: pairing code");
            self.checks.push(match voucher.consumed_by {
                Some(_) if voucher.reissue => Check::good(&what, "used, and good for that broker"),
                Some(_) if voucher.is_usable(now) => Check::good(
                    &what,
                    "used, and good for that broker until it says that it has its certificate",
                ),
                Some(_) => Check::good(&what, "used"),
                None if voucher.is_usable(now) => {
                    let left = voucher.expires_unix_s.saturating_sub(now) / 60;
                    Check::good(&what, format!("waits for its broker, {left} minutes left"))
                }
                None => {
                    let fix = "register the broker again, with the same code or a new one";
                    Check::bad(&what, "expired before a broker used it", fix)
                }
            });
        }
        let mut said = public(registration.bridge().chain(), Role::Bridge);
        said["pair"] = json!(registration.id().as_str());
        said["name"] = json!(registration.name());
        said["relays"] = json!(registration.relays());
        said["created_unix_s"] = json!(registration.created_unix_s());
        said["pairing"] = json!(registration.voucher().map(|voucher| json!({
            "reissue": voucher.reissue, "expires_unix_s": voucher.expires_unix_s,
            "used": voucher.consumed_by.is_some(), "bound_to_a_key": registration.is_bound(),
        })));
        self.pairs.push(said);
    }

    async fn state(&mut self, store: &culvert_pair::Stored, wanted: Option<RendezvousId>) {
        let what = format!("state of the broker {}", store.place());
        match store.load_broker().await {
            Err(why) => {
                let why = of_store(&why);
                self.checks.push(Check::bad(&what, why.seen, &why.fix));
            }
            Ok(None) => {
                let fix = "culvert pair fingerprint makes a key; a broker with a join string too";
                self.checks.push(Check::bad(&what, "no key in it", fix));
            }
            Ok(Some((state, _))) => match state.identity() {
                Some(identity) => {
                    self.chain(&what, identity.chain(), Role::Broker, wanted);
                    self.pairs.push(public(identity.chain(), Role::Broker));
                }
                None => self
                    .checks
                    .push(Check::good(&what, "a bootstrap key, no certificate yet")),
            },
        }
    }

    fn chain(&mut self, what: &str, chain: &Chain, role: Role, wanted: Option<RendezvousId>) {
        let now = now_unix_s();
        let hash = chain.info_hash();
        self.checks.push(match chain.check(role, now) {
            Ok(validity) => {
                let left = validity.until_unix_s.saturating_sub(now);
                let days = left / 86_400;
                let seen = format!(
                    "for a {}, {days} days left, info hash {hash}",
                    role.as_str()
                );
                if left < SOON_S && role == Role::Broker {
                    let fix = "let the broker pair again before it ends: register it again";
                    Check::bad(what, seen, fix)
                } else {
                    Check::good(what, seen)
                }
            }
            Err(why) => {
                let fix = "give the certificate of this side and the CA that signed it, or make \
                           new ones with culvert pair init, register or connect";
                Check::bad(what, why.to_string(), fix)
            }
        });
        if let Some(wanted) = wanted.filter(|wanted| *wanted != hash) {
            let seen = format!("{hash}, where --info-hash says {wanted}");
            let fix = "use the hash that the bridge's side printed for this pair, or its CA";
            self.checks
                .push(Check::bad(&format!("{what}: info hash"), seen, fix));
        }
    }
}

/// What may be shown of a chain.
fn public(chain: &Chain, role: Role) -> Value {
    let certificate = |der: &[u8]| {
        describe(der).map(|told| {
            json!({
                "subject": told.subject, "issuer": told.issuer, "serial": told.serial,
                "from_unix_s": told.validity.from_unix_s,
                "until_unix_s": told.validity.until_unix_s,
                "sha256": told.sha256, "spki_sha256": told.spki_sha256,
            })
        })
    };
    json!({
        "role": role.as_str(), "info_hash": chain.info_hash().to_string(),
        "certificate": certificate(&chain.leaf_der), "ca": certificate(&chain.ca_der),
    })
}

/// The side that a certificate is of; a broker's where it is of neither.
fn role_of(chain: &Chain) -> Role {
    let usable = |role| {
        !matches!(
            chain.check(role, now_unix_s()),
            Err(culvert_pair::Fault::Usage { .. })
        )
    };
    if usable(Role::Bridge) {
        Role::Bridge
    } else {
        Role::Broker
    }
}

fn read_identity(cert: &Path, key: &Path, ca: &Path) -> std::result::Result<Identity, String> {
    let key = read_private_within(key, FILE_BYTES_MAX).map_err(|why| why.to_string())?;
    let key = std::str::from_utf8(&key).map_err(|_| "the key is no PEM".to_owned())?;
    let (cert, ca) = (read(cert)?, read(ca)?);
    Identity::from_pem(&cert, key, &ca).map_err(|why| why.to_string())
}

fn read(path: &Path) -> std::result::Result<String, String> {
    use std::io::Read as _;
    let told = |why: std::io::Error| format!("{}: {why}", path.display());
    let file = std::fs::File::open(path).map_err(told)?;
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX).read_to_string(&mut text);
    read.map_err(told)?;
    Ok(text)
}
