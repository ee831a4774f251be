//! The request: written by the agent, read by the hub.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::fields::Fields;
use super::{
    AgentHello, CarrierKind, HelloError, SUBPROTOCOL, UPGRADE_NATIVE, UPGRADE_WEBSOCKET, header,
};
use crate::id::ClusterId;
use crate::token::TokenText;

/// A hello as the hub received it. It holds a token: no `Debug`.
pub struct HelloRequest {
    /// What the agent says about itself.
    pub hello: AgentHello,
    /// The bearer token; `None` where a client certificate is the identity.
    pub token: Option<TokenText>,
    /// The carrier to answer with.
    pub kind: CarrierKind,
    /// `Sec-WebSocket-Key`; always there when `kind` is a WebSocket.
    pub websocket_key: Option<String>,
    /// What a Radar connector adds.
    pub radar: Option<RadarFacts>,
}

/// Facts of a Radar connector (W-2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RadarFacts {
    /// `cluster_name` of the query.
    pub cluster_name: String,
    /// `X-Radar-Namespace`.
    pub namespace: String,
    /// `X-Radar-API-Server-URL`.
    pub api_server_url: String,
    /// `X-Radar-Release`; `None` = keep the stored value.
    pub release: Option<String>,
    /// `X-Radar-Self-Upgrade-Available`.
    pub self_upgrade: bool,
}

/// Header fields of the agent's request, besides `Host` and `Authorization`. With
/// `websocket_only` the raw upgrade is not offered.
pub fn request_headers(
    hello: &AgentHello,
    websocket_key: &str,
    websocket_only: bool,
) -> Vec<(&'static str, String)> {
    let upgrade = match websocket_only {
        true => UPGRADE_WEBSOCKET.into(),
        false => [UPGRADE_NATIVE, ", ", UPGRADE_WEBSOCKET].concat(),
    };
    let mut fields = alloc::vec![
        ("connection", String::from("Upgrade")),
        ("upgrade", upgrade),
        ("sec-websocket-version", "13".into()),
        ("sec-websocket-key", websocket_key.into()),
        ("sec-websocket-protocol", SUBPROTOCOL.into()),
        (header::VERSION, hello.version.clone()),
        (header::CAPS, hello.caps.to_string()),
    ];
    if let Some(instance) = &hello.instance {
        fields.push((header::INSTANCE, instance.to_string()));
    }
    if let Some(cluster) = &hello.cluster {
        fields.push((header::CLUSTER, cluster.to_string()));
    }
    fields
}

impl HelloRequest {
    /// Reads a `GET` on an agent path. `query` is the raw query without `?`; `headers` are names
    /// in any case with their raw values.
    pub fn parse<'a>(
        query: Option<&str>,
        headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<HelloRequest, HelloError> {
        let fields = Fields::collect(headers)?;
        let kind = fields.carrier_kind()?;
        let token = fields.token()?;
        let websocket_key = fields.websocket_key(kind)?;
        let radar_claim = query.unwrap_or("");
        let (hello, radar) = match kind {
            CarrierKind::Radar => {
                let (hello, radar) = fields.radar(radar_claim)?;
                (hello, Some(radar))
            }
            CarrierKind::Native | CarrierKind::WebSocket => (fields.culvert()?, None),
        };
        Ok(HelloRequest {
            hello,
            token,
            kind,
            websocket_key,
            radar,
        })
    }

    /// A claimed cluster must be the credential's own.
    pub fn check_cluster(&self, credential: &ClusterId) -> Result<(), HelloError> {
        match &self.hello.cluster {
            Some(claimed) if claimed != credential => Err(HelloError::ClusterMismatch {
                claimed: claimed.to_string(),
            }),
            _ => Ok(()),
        }
    }
}
