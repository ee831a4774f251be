//! The registration as JSON, version 1.

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::{Issue, PairId, Registration, RegistrationError, check_relays};
use crate::authority::Authority;
use crate::code::PairingCode;
use crate::identity::Identity;
use crate::voucher::Voucher;

/// The only version.
const VERSION: u64 = 1;
/// Room for a document: a text that grows leaves copies behind.
const ROOM_BYTES: usize = 16 << 10;

#[derive(Serialize, Deserialize)]
struct Document {
    version: u64,
    id: String,
    name: String,
    #[serde(default)]
    relays: Vec<String>,
    created_unix_s: u64,
    ca_certificate: String,
    ca_key: String,
    bridge_certificate: String,
    bridge_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pairing: Option<Pairing>,
}

#[derive(Serialize, Deserialize)]
struct Pairing {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    is_bound: bool,
    reissue: bool,
    expires_unix_s: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    consumed_by: Option<String>,
    /// Before this was written down, a code was forgotten with its use.
    #[serde(default)]
    is_confirmed: Option<bool>,
}

#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

impl Drop for Document {
    fn drop(&mut self) {
        self.ca_key.zeroize();
        self.bridge_key.zeroize();
        if let Some(code) = self.pairing.as_mut().and_then(|p| p.code.as_mut()) {
            code.zeroize();
        }
    }
}

pub(super) fn write(registration: &Registration) -> Zeroizing<Vec<u8>> {
    let authority = &registration.authority;
    let document = Document {
        version: VERSION,
        id: registration.id.to_string(),
        name: authority.name().to_owned(),
        relays: registration.relays.clone(),
        created_unix_s: registration.created_unix_s,
        ca_certificate: authority.certificate_pem(),
        ca_key: authority.key_pem().to_string(),
        bridge_certificate: registration.bridge.chain_pem(),
        bridge_key: registration.bridge.key_pem().to_string(),
        pairing: registration.issue.as_ref().map(|issue| Pairing {
            code: issue.code.as_ref().map(|code| code.encode().to_string()),
            is_bound: issue.is_bound,
            reissue: issue.voucher.reissue,
            expires_unix_s: issue.voucher.expires_unix_s,
            consumed_by: issue.voucher.consumed_by.as_ref().map(hex),
            is_confirmed: Some(issue.voucher.is_confirmed),
        }),
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(ROOM_BYTES));
    serde_json::to_writer_pretty(&mut *bytes, &document)
        .expect("a document of strings and numbers goes into memory");
    bytes.push(b'\n');
    bytes
}

pub(super) fn read(bytes: &[u8]) -> Result<Registration, RegistrationError> {
    let damaged = |problem: &dyn ToString| RegistrationError::Damaged {
        problem: problem.to_string(),
    };
    let Versioned { version } = serde_json::from_slice(bytes).map_err(|why| place(&why))?;
    if version != VERSION {
        return Err(RegistrationError::Version { seen: version });
    }
    let document: Document = serde_json::from_slice(bytes).map_err(|why| place(&why))?;
    check_relays(&document.relays)?;
    let authority =
        Authority::from_pem(&document.name, &document.ca_certificate, &document.ca_key)?;
    let bridge = Identity::from_pem(
        &document.bridge_certificate,
        &document.bridge_key,
        &document.ca_certificate,
    )?;
    let issue = match &document.pairing {
        Some(pairing) => Some(read_pairing(pairing)?),
        None => None,
    };
    let id: PairId = document.id.parse().map_err(|why| damaged(&why))?;
    let code = issue.as_ref().and_then(|issue| issue.code.as_ref());
    let wanted = match (code, &issue) {
        (Some(code), _) => Some(PairId::of(&code.rendezvous_id())),
        (None, None) => Some(PairId::of(&authority.info_hash())),
        // The code is forgotten, and nothing else says the id.
        (None, Some(_)) => None,
    };
    if wanted.is_some_and(|wanted| wanted != id) {
        return Err(damaged(&"its id is that of another pair"));
    }
    Ok(Registration {
        id,
        relays: document.relays.clone(),
        created_unix_s: document.created_unix_s,
        authority,
        bridge,
        issue,
    })
}

fn read_pairing(pairing: &Pairing) -> Result<Issue, RegistrationError> {
    let damaged = |problem: &dyn ToString| RegistrationError::Damaged {
        problem: problem.to_string(),
    };
    let code = match &pairing.code {
        Some(word) => Some(PairingCode::decode(word).map_err(|why| damaged(&why))?),
        None => None,
    };
    let consumed_by = match &pairing.consumed_by {
        Some(digits) => {
            let hash: culvert_proto::pair::RendezvousId = digits
                .parse()
                .map_err(|_| damaged(&"consumed_by is no SHA-256"))?;
            Some(hash.0)
        }
        None => None,
    };
    if code.is_none() && consumed_by.is_none() {
        return Err(damaged(
            &"its pairing has neither a code nor a key that used it",
        ));
    }
    Ok(Issue {
        code,
        is_bound: pairing.is_bound,
        voucher: Voucher {
            reissue: pairing.reissue,
            expires_unix_s: pairing.expires_unix_s,
            consumed_by,
            is_confirmed: pairing.is_confirmed.unwrap_or(consumed_by.is_some()),
        },
    })
}

/// Where the JSON is wrong. The parser's own words may quote the document, which holds keys.
fn place(why: &serde_json::Error) -> RegistrationError {
    let problem = format!("JSON, line {} column {}", why.line(), why.column());
    RegistrationError::Damaged { problem }
}

fn hex(bytes: &[u8; 32]) -> String {
    culvert_proto::pair::RendezvousId(*bytes).to_string()
}
