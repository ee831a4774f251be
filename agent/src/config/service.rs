//! Settings that concern the target.

use std::path::PathBuf;

use culvert_net::tls::{ClientTlsOptions, MinVersion, Roots};

use super::reader::Reader;
use crate::ceiling::{Ceiling, Patterns};
use crate::services::{NamedService, SERVICES_MAX};
use crate::target::{Target, TargetKind};

impl Reader {
    pub(super) fn target(&mut self) -> Option<Target> {
        let value = self.layers.get("target")?.clone();
        let kind = match self.layers.get("target-kind").cloned() {
            None => None,
            Some(kind) => match kind.text.as_str() {
                "http" => Some(TargetKind::Http),
                "kube" => Some(TargetKind::Kube),
                _ => {
                    self.problem(&kind, "is neither http nor kube");
                    None
                }
            },
        };
        let plain = self.switch("plain-target");
        let ceiling = Ceiling {
            users: self.patterns("impersonate-users"),
            groups: self.patterns("impersonate-groups"),
            wants_identity: self.switch("require-identity"),
        };
        Target::parse(&value.text, kind, plain)
            .map_err(|why| self.layers.problems.push(format!("{}: {why}", value.from)))
            .map(|target| Target { ceiling, ..target })
            .ok()
    }

    fn patterns(&mut self, name: &str) -> Patterns {
        let Some(value) = self.layers.get(name).cloned() else {
            return Patterns::default();
        };
        let read = Patterns::parse(&value.text);
        read.unwrap_or_else(|why| {
            self.problem(&value, why);
            Patterns::default()
        })
    }

    pub(super) fn services(&mut self) -> Vec<NamedService> {
        let mut services: Vec<NamedService> = Vec::new();
        for (setting, sealed) in [("service", false), ("sealed-service", true)] {
            let Some(value) = self.layers.get(setting).cloned() else {
                continue;
            };
            for item in value.text.split(',').map(str::trim) {
                match NamedService::parse(item, sealed) {
                    Ok(one) if services.iter().any(|known| known.name == one.name) => {
                        let name = one.name.as_str();
                        self.problem(&value, format_args!("names {name:?} twice; keep one"));
                    }
                    Ok(one) => services.push(one),
                    Err(why) => self.problem(&value, format_args!("holds {item:?}, which {why}")),
                }
            }
            if services.len() > SERVICES_MAX {
                self.problem(
                    &value,
                    format_args!("makes more than {SERVICES_MAX} services"),
                );
            }
        }
        services
    }

    pub(super) fn target_tls(&mut self) -> ClientTlsOptions {
        let insecure = self.switch("insecure");
        let ca = self.layers.get("ca-cert").cloned();
        let ca = ca.filter(|ca| !ca.defaulted || PathBuf::from(&ca.text).exists());
        let roots = match (insecure, ca) {
            (true, _) => {
                self.layers
                    .warnings
                    .push("--insecure: the target's certificate is not verified".to_owned());
                Roots::Insecure
            }
            (false, Some(ca)) => Roots::File(ca.text.into()),
            (false, None) => Roots::System,
        };
        let options = ClientTlsOptions {
            roots,
            identity: None,
            alpn: vec![b"http/1.1".to_vec()],
            min_version: MinVersion::Tls12,
        };
        self.try_tls("TLS to the target", &options);
        options
    }

    /// The default path counts where it exists, and for Kubernetes targets only;
    /// a path that was asked for has to be readable.
    pub(super) fn service_account_token(&mut self, target: Option<&Target>) -> Option<PathBuf> {
        let value = self.layers.get("sa-token-path")?.clone();
        let path = PathBuf::from(&value.text);
        if !value.defaulted {
            if let Err(why) = crate::upstream::kube::TokenFile::new(path.clone()).bearer() {
                self.problem(&value, format_args!("cannot be used: {why}"));
            }
            return Some(path);
        }
        let kube = target.is_some_and(|target| target.kind == TargetKind::Kube);
        if kube && !path.exists() {
            self.layers.warnings.push(format!(
                "{} does not exist: requests go to the target without a bearer token",
                path.display()
            ));
        }
        (kube && path.exists()).then_some(path)
    }
}
