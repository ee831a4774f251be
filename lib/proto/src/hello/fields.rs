//! The fields of a hello, each judged on its own.

use alloc::string::String;
use alloc::vec::Vec;

use super::request::RadarFacts;
use super::{
    AgentHello, Caps, CarrierKind, HelloError, SUBPROTOCOL, UPGRADE_NATIVE, UPGRADE_WEBSOCKET,
    header,
};
use crate::id::{ClusterId, InstanceId};
use crate::text;
use crate::token::TokenText;

const VERSION_BYTES_MAX: usize = 64;
const RADAR_FIELD_BYTES_MAX: usize = 512;

/// Every field of interest, each at most once; lists are joined.
#[derive(Default)]
pub(super) struct Fields<'a> {
    connection_upgrade: bool,
    upgrade: Vec<&'a str>,
    subprotocols: Vec<&'a str>,
    websocket_version: Option<&'a str>,
    websocket_key: Option<&'a str>,
    authorization: Option<&'a [u8]>,
    instance: Option<&'a str>,
    version: Option<&'a str>,
    caps: Option<&'a str>,
    cluster: Option<&'a str>,
    radar_version: Option<&'a str>,
    radar_namespace: Option<&'a str>,
    radar_api_server: Option<&'a str>,
    radar_release: Option<&'a str>,
    radar_self_upgrade: Option<&'a str>,
}

impl<'a> Fields<'a> {
    pub(super) fn collect(
        headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Self, HelloError> {
        let mut fields = Fields::default();
        for (name, value) in headers {
            fields.take(&name.to_ascii_lowercase(), value)?;
        }
        Ok(fields)
    }

    fn take(&mut self, name: &str, value: &'a [u8]) -> Result<(), HelloError> {
        match name {
            "origin" => return Err(HelloError::Browser("Origin")),
            "cookie" => return Err(HelloError::Browser("Cookie")),
            "connection" => {
                let mut tokens = list(ascii("Connection", value)?);
                self.connection_upgrade |=
                    tokens.any(|token| token.eq_ignore_ascii_case("upgrade"));
            }
            "upgrade" => self.upgrade.extend(list(ascii("Upgrade", value)?)),
            "sec-websocket-protocol" => {
                self.subprotocols
                    .extend(list(ascii("Sec-WebSocket-Protocol", value)?));
            }
            "authorization" => match self.authorization.replace(value) {
                None => {}
                Some(_) => return Err(HelloError::Repeated("Authorization")),
            },
            "sec-websocket-version" => {
                once(&mut self.websocket_version, "Sec-WebSocket-Version", value)?;
            }
            "sec-websocket-key" => once(&mut self.websocket_key, "Sec-WebSocket-Key", value)?,
            header::INSTANCE => once(&mut self.instance, "Culvert-Instance", value)?,
            header::VERSION => once(&mut self.version, "Culvert-Version", value)?,
            header::CAPS => once(&mut self.caps, "Culvert-Caps", value)?,
            header::CLUSTER => once(&mut self.cluster, "Culvert-Cluster", value)?,
            "x-radar-version" => once(&mut self.radar_version, "X-Radar-Version", value)?,
            "x-radar-namespace" => once(&mut self.radar_namespace, "X-Radar-Namespace", value)?,
            "x-radar-api-server-url" => {
                once(&mut self.radar_api_server, "X-Radar-API-Server-URL", value)?;
            }
            "x-radar-release" => once(&mut self.radar_release, "X-Radar-Release", value)?,
            "x-radar-self-upgrade-available" => {
                once(
                    &mut self.radar_self_upgrade,
                    "X-Radar-Self-Upgrade-Available",
                    value,
                )?;
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn carrier_kind(&self) -> Result<CarrierKind, HelloError> {
        if !self.connection_upgrade || self.upgrade.is_empty() {
            return Err(HelloError::NotUpgrade);
        }
        if self.upgrade.contains(&UPGRADE_NATIVE) {
            return Ok(CarrierKind::Native);
        }
        let websocket = self
            .upgrade
            .iter()
            .any(|u| u.eq_ignore_ascii_case(UPGRADE_WEBSOCKET))
            && self.websocket_version == Some("13");
        if websocket && self.subprotocols.contains(&SUBPROTOCOL) {
            return Ok(CarrierKind::WebSocket);
        }
        // Radar connectors always send fields of their own and never a sub-protocol.
        let radar = self.radar_version.is_some() || self.radar_self_upgrade.is_some();
        if websocket && self.subprotocols.is_empty() && radar {
            return Ok(CarrierKind::Radar);
        }
        Err(HelloError::NoCommonVersion {
            offered: self.offer(),
        })
    }

    fn offer(&self) -> String {
        let mut offer = self.upgrade.join(", ");
        for (label, values) in [
            ("; sub-protocol ", &self.subprotocols),
            ("; version ", &self.version_list()),
        ] {
            if !values.is_empty() {
                offer.push_str(label);
                offer.push_str(&values.join(", "));
            }
        }
        String::from(text::clip(&offer, 128))
    }

    fn version_list(&self) -> Vec<&'a str> {
        self.version.into_iter().collect()
    }

    pub(super) fn token(&self) -> Result<Option<TokenText>, HelloError> {
        let Some(value) = self.authorization else {
            return Ok(None);
        };
        let value = core::str::from_utf8(value).map_err(|_| HelloError::Credential)?;
        let (scheme, token) = value.split_once(' ').ok_or(HelloError::Credential)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(HelloError::Credential);
        }
        // Which tokens there are is the table's business; without TLS there may be short ones.
        TokenText::for_development(token.trim_matches(' '))
            .map(Some)
            .map_err(|_| HelloError::Credential)
    }

    /// 16 bytes in base64: 24 characters that end in `==`.
    pub(super) fn websocket_key(&self, kind: CarrierKind) -> Result<Option<String>, HelloError> {
        let name = "Sec-WebSocket-Key";
        let Some(key) = self.websocket_key else {
            return match kind {
                CarrierKind::Native => Ok(None),
                _ => Err(HelloError::Field {
                    name,
                    why: "missing",
                }),
            };
        };
        let digits = key.as_bytes();
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
        if key.len() == 24 && key.ends_with("==") && digits[..22].iter().all(plain) {
            Ok(Some(key.into()))
        } else {
            Err(HelloError::Field {
                name,
                why: "not 16 bytes in base64",
            })
        }
    }

    pub(super) fn culvert(&self) -> Result<AgentHello, HelloError> {
        let name = "Culvert-Instance";
        let instance = self.instance.ok_or(HelloError::Field {
            name,
            why: "missing",
        })?;
        let instance: InstanceId = instance.parse().map_err(|_| HelloError::Field {
            name,
            why: "not a UUID",
        })?;
        if instance.is_none() {
            return Err(HelloError::Field {
                name,
                why: "the nil UUID names no process",
            });
        }
        let cluster = self.cluster.map(ClusterId::new).transpose();
        Ok(AgentHello {
            instance: Some(instance),
            version: version("Culvert-Version", self.version)?,
            caps: Caps::parse(self.caps.unwrap_or("")),
            cluster: cluster.map_err(|_| HelloError::Field {
                name: "Culvert-Cluster",
                why: "no cluster id",
            })?,
        })
    }

    pub(super) fn radar(&self, query: &str) -> Result<(AgentHello, RadarFacts), HelloError> {
        let kept = |value: Option<&str>| {
            String::from(text::clip(value.unwrap_or(""), RADAR_FIELD_BYTES_MAX))
        };
        let claimed = query_value(query, "cluster_id").filter(|id| !id.is_empty());
        // A name our pattern refuses can be no cluster of ours, so no credential belongs to it.
        let cluster = claimed.map(|id| {
            ClusterId::new(&id).map_err(|_| HelloError::ClusterMismatch {
                claimed: text::clip(&id, 64).into(),
            })
        });
        let hello = AgentHello {
            instance: None,
            version: text::clip(self.radar_version.unwrap_or(""), VERSION_BYTES_MAX).into(),
            caps: Caps::default(),
            cluster: cluster.transpose()?,
        };
        let radar = RadarFacts {
            cluster_name: kept(query_value(query, "cluster_name").as_deref()),
            namespace: kept(self.radar_namespace),
            api_server_url: kept(self.radar_api_server),
            release: self.radar_release.map(|release| kept(Some(release))),
            self_upgrade: self.radar_self_upgrade == Some("true"),
        };
        Ok((hello, radar))
    }
}

fn version(name: &'static str, value: Option<&str>) -> Result<String, HelloError> {
    let value = value.unwrap_or("");
    if value.len() > VERSION_BYTES_MAX {
        return Err(HelloError::Field {
            name,
            why: "over 64 characters",
        });
    }
    Ok(value.into())
}

fn once<'a>(
    place: &mut Option<&'a str>,
    name: &'static str,
    value: &'a [u8],
) -> Result<(), HelloError> {
    match place.replace(ascii(name, value)?.trim()) {
        None => Ok(()),
        Some(_) => Err(HelloError::Repeated(name)),
    }
}

fn ascii<'a>(name: &'static str, value: &'a [u8]) -> Result<&'a str, HelloError> {
    let text = core::str::from_utf8(value).ok();
    text.filter(|text| text.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~')))
        .ok_or(HelloError::Field {
            name,
            why: "not printable ASCII",
        })
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

/// The value of one query parameter, percent-decoded; text that is not UTF-8 counts as absent.
fn query_value(query: &str, wanted: &str) -> Option<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let raw = pairs
        .filter(|(name, _)| *name == wanted)
        .map(|(_, value)| value)
        .next()?;
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let [byte, tail @ ..] = rest {
        match (byte, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let [decoded] = text::unhex::<1>(&[*high, *low])?;
                bytes.push(decoded);
                rest = tail;
            }
            (b'%', _) => return None,
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            _ => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}
