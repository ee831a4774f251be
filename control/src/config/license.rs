//! The licence, and how hosts outside are reached.

use std::path::PathBuf;
use std::sync::Arc;

use culvert_licence::{KeySet, vendor};
use culvert_net::dial::ProxyConfig;
use culvert_net::tls::{ClientTls, ClientTlsOptions, Roots};

use super::Checks;
use crate::license::{LicenseConfig, Server};
use crate::outbound::Outbound;

/// Longest mode or organisation, in characters.
const NAME_CHARS_MAX: usize = 128;

impl Checks {
    /// How hosts outside are reached. A system without CAs is no reason not to
    /// start: then nobody outside can be asked, and each request says why.
    pub(super) fn outbound(&mut self, env: &dyn Fn(&str) -> Option<String>) -> Outbound {
        let explicit = self.layers.get("proxy").map(|proxy| proxy.text.clone());
        let proxy = ProxyConfig::new(explicit.as_deref(), env).unwrap_or_else(|why| {
            self.problems.push(why.to_string());
            ProxyConfig::direct()
        });
        let ca = self.parsed("outbound-ca", |text| Ok(PathBuf::from(text)));
        let is_given = ca.is_some();
        let options = ClientTlsOptions {
            roots: ca.map_or(Roots::System, Roots::SystemAnd),
            ..ClientTlsOptions::default()
        };
        match ClientTls::load(options) {
            Ok(tls) => Outbound::new(Arc::new(tls), proxy),
            Err(why) => {
                if is_given {
                    self.say("outbound-ca", &why.to_string());
                }
                Outbound::without_trust(why.to_string())
            }
        }
    }

    pub(super) fn license(&mut self, outbound: &Outbound) -> LicenseConfig {
        let name = |text: &str| {
            let is_plain = !text.chars().any(char::is_control);
            if is_plain && text.chars().count() <= NAME_CHARS_MAX {
                Ok(text.to_owned())
            } else {
                Err(format!(
                    "holds control characters or more than {NAME_CHARS_MAX} characters"
                ))
            }
        };
        let file = self.parsed("license-file", |text| Ok(PathBuf::from(text)));
        let url = self.parsed("license-server", https_url);
        let is_enabled = self.parsed("license-heartbeat", |text| {
            text.parse()
                .map_err(|_| format!("is {text:?}; use true or false"))
        });
        LicenseConfig {
            text: self.parsed("license-key", |text| Ok(text.to_owned())),
            files: file.map_or_else(
                || vendor::FILES.iter().map(PathBuf::from).collect(),
                |file| vec![file],
            ),
            keys: KeySet::embedded(),
            mode: self.parsed("mode", name).unwrap_or_default(),
            org_name: self.parsed("org-name", name).unwrap_or_default(),
            heartbeat: url.filter(|_| is_enabled == Some(true)).map(|url| Server {
                url,
                outbound: outbound.clone(),
            }),
        }
    }
}

fn https_url(text: &str) -> Result<String, String> {
    match url::Url::parse(text) {
        Ok(url) if url.scheme() == "https" && url.has_host() => Ok(text.to_owned()),
        _ => Err("is no https:// URL".to_owned()),
    }
}
