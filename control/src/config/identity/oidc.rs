//! OpenID providers: one by flags, further ones by a file, and what groups may do.

use std::path::{Path, PathBuf};

use culvert_config::{FILE_BYTES_MAX, Sourced};
use culvert_identity::Tier;
use openidconnect::{ClientId, ClientSecret, IssuerUrl, RedirectUrl, Scope};
use serde::Deserialize;

use super::Checks;
use crate::identity::{
    BREAK_GLASS, Client, Mapping, PROVIDERS_MAX, Provider, TIERED_GROUPS_MAX, Tiers,
};
use crate::outbound::Outbound;

/// The name of the provider that flags describe.
const FLAGGED: &str = "default";
const CALLBACK: &str = "/api/auth/callback";
/// Longest name, title, claim or prefix, in bytes.
const TEXT_BYTES_MAX: usize = 128;
/// Scopes, and beginnings of groups, of a provider at most.
const LIST_MAX: usize = 32;

/// The file of `--oidc-providers`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    #[serde(default)]
    provider: Vec<Spec>,
}

/// One provider as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    name: String,
    title: Option<String>,
    issuer: String,
    client_id: String,
    client_secret_file: Option<PathBuf>,
    #[serde(skip)]
    client_secret: Option<String>,
    scopes: Option<Vec<String>>,
    groups_claim: Option<String>,
    #[serde(default)]
    groups_filter: Vec<String>,
    username_claim: Option<String>,
    #[serde(default)]
    prefix: String,
}

impl Checks {
    /// Every provider.
    pub(super) fn providers(&mut self, own: Option<&str>, outbound: &Outbound) -> Vec<Provider> {
        let callback = self.callback(own);
        let mut specs: Vec<(String, Spec)> = Vec::new();
        specs.extend(self.flagged().map(|spec| ("oidc-issuer".to_owned(), spec)));
        let listed = self.listed();
        specs.extend(
            listed
                .into_iter()
                .map(|spec| ("oidc-providers".to_owned(), spec)),
        );
        if specs.is_empty() {
            return Vec::new();
        }
        self.distinct(&specs);
        let Some(callback) = callback else {
            let why = "needs --public-url or --oidc-callback-url: where browsers come back";
            self.say(&specs[0].0, why);
            return Vec::new();
        };
        let mut providers = Vec::new();
        for (from, spec) in specs {
            let name = spec.name.clone();
            match spec.client(&callback) {
                Ok(client) => providers.push(Provider::new(client, outbound.clone())),
                Err(why) => self.say(&from, &format!("provider {name:?}: {why}")),
            }
        }
        providers
    }

    /// Names differ, and so do prefixes: two providers must not speak for the same people.
    fn distinct(&mut self, specs: &[(String, Spec)]) {
        if specs.len() > PROVIDERS_MAX {
            let why = format!("{} providers, at most {PROVIDERS_MAX}", specs.len());
            self.say("oidc-providers", &why);
        }
        for (number, (from, spec)) in specs.iter().enumerate() {
            let before = || specs[..number].iter().map(|(_, spec)| spec);
            let name = &spec.name;
            if before().any(|other| other.name == *name) {
                self.say(from, &format!("two providers are called {name:?}"));
            }
            if before().any(|other| other.prefix == spec.prefix) {
                let why = format!(
                    "provider {name:?}: another has the prefix {:?} too, so that one could name people of the other; give each its own prefix",
                    spec.prefix
                );
                self.say(from, &why);
            }
        }
    }

    fn callback(&mut self, own: Option<&str>) -> Option<RedirectUrl> {
        let given = self.parsed("oidc-callback-url", |text| {
            let is_plain = super::public_url(text).is_ok();
            let url = RedirectUrl::new(text.to_owned()).ok();
            url.filter(|_| is_plain)
                .ok_or_else(|| format!("is {text:?}, no https:// URL of {CALLBACK}"))
        });
        let made = || RedirectUrl::new(format!("{}{CALLBACK}", own?)).ok();
        given.or_else(made)
    }

    fn flagged(&mut self) -> Option<Spec> {
        let text = |text: &str| Ok(text.to_owned());
        let issuer = self.parsed("oidc-issuer", text);
        let id = self.parsed("oidc-client-id", text);
        let list = |text: &str| Ok(listed(text));
        let spec = Spec {
            name: FLAGGED.to_owned(),
            title: self.parsed("oidc-title", text),
            client_secret: self.parsed("oidc-client-secret", text),
            scopes: self.parsed("oidc-scopes", list),
            groups_claim: self.parsed("oidc-groups-claim", text),
            groups_filter: self.parsed("oidc-groups-filter", list).unwrap_or_default(),
            username_claim: self.parsed("oidc-username-claim", text),
            prefix: self.parsed("oidc-prefix", text).unwrap_or_default(),
            ..Spec::default()
        };
        match (issuer, id) {
            (None, None) => {
                let set = self.layers.get("oidc-client-secret");
                if set.is_some() {
                    self.say(
                        "oidc-client-secret",
                        "needs --oidc-issuer and --oidc-client-id",
                    );
                }
                None
            }
            (Some(issuer), Some(client_id)) => Some(Spec {
                issuer,
                client_id,
                ..spec
            }),
            (Some(_), None) => {
                self.say("oidc-issuer", "needs --oidc-client-id");
                None
            }
            (None, Some(_)) => {
                self.say("oidc-client-id", "needs --oidc-issuer");
                None
            }
        }
    }

    fn listed(&mut self) -> Vec<Spec> {
        let read = self.parsed("oidc-providers", |path| {
            let path = Path::new(path);
            let text = bounded(path).map_err(|why| format!("{}: {why}", path.display()))?;
            let listed: Listed =
                toml::from_str(&text).map_err(|why| format!("{}: {why}", path.display()))?;
            let secret = |mut spec: Spec| {
                if let Some(file) = &spec.client_secret_file {
                    let file = path.parent().unwrap_or(path).join(file);
                    let text =
                        bounded(&file).map_err(|why| format!("{}: {why}", file.display()))?;
                    spec.client_secret = Some(text.trim().to_owned());
                }
                Ok(spec)
            };
            listed
                .provider
                .into_iter()
                .map(secret)
                .collect::<Result<Vec<_>, String>>()
        });
        read.unwrap_or_default()
    }

    /// Which groups may do what at the hub itself.
    pub(super) fn tiers(&mut self) -> Tiers {
        let mut tiers = Tiers::default();
        for tier in Tier::ALL {
            let name = format!("{}-groups", tier.as_str());
            for group in self
                .parsed(&name, |text| Ok(listed(text)))
                .unwrap_or_default()
            {
                tiers.give(group, tier);
            }
        }
        if tiers.count() > TIERED_GROUPS_MAX {
            let why = format!(
                "{} groups have a tier, at most {TIERED_GROUPS_MAX}",
                tiers.count()
            );
            self.say("admin-groups", &why);
        }
        tiers
    }

    /// Says that providers cannot be used without what seals sessions.
    pub(super) fn no_providers(&mut self) {
        for name in ["oidc-issuer", "oidc-providers"] {
            if self
                .layers
                .get(name)
                .is_some_and(|it: &Sourced| !it.defaulted)
            {
                self.say(name, "needs --cookie-password: sessions are sealed with it");
            }
        }
    }
}

impl Spec {
    fn client(self, callback: &RedirectUrl) -> Result<Client, String> {
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || !self.name.chars().all(is_word) || self.name == BREAK_GLASS {
            return Err(format!(
                "wanted a name of a-z, 0-9 and -, other than {BREAK_GLASS}"
            ));
        }
        let issuer = issuer(&self.issuer)?;
        let groups_claim = self.groups_claim.unwrap_or_else(|| "groups".to_owned());
        let username_claim = self.username_claim.unwrap_or_else(|| "sub".to_owned());
        let title = self.title.unwrap_or_else(|| self.name.clone());
        let texts = [
            &self.name,
            &title,
            &self.client_id,
            &groups_claim,
            &username_claim,
            &self.prefix,
        ];
        if texts
            .iter()
            .any(|it| it.len() > TEXT_BYTES_MAX || it.chars().any(char::is_control))
        {
            let why = format!("a text has over {TEXT_BYTES_MAX} bytes, or control characters");
            return Err(why);
        }
        if self.prefix.to_ascii_lowercase().starts_with("system:") {
            return Err("the prefix begins with system:, which is Kubernetes' own".to_owned());
        }
        let scopes = self
            .scopes
            .unwrap_or_else(|| vec!["email".to_owned(), "profile".to_owned()]);
        if scopes.len() > LIST_MAX || self.groups_filter.len() > LIST_MAX {
            return Err(format!("over {LIST_MAX} scopes, or beginnings of groups"));
        }
        let secret = self.client_secret;
        if self.client_id.is_empty() || secret.as_ref().is_some_and(String::is_empty) {
            return Err("the client id, or its secret, is empty".to_owned());
        }
        Ok(Client {
            name: self.name,
            title,
            issuer,
            id: ClientId::new(self.client_id),
            secret: secret.map(ClientSecret::new),
            scopes: scopes
                .into_iter()
                .filter(|it| it != "openid")
                .map(Scope::new)
                .collect(),
            callback: callback.clone(),
            mapping: Mapping {
                groups_claim,
                groups_filter: self.groups_filter,
                username_claim,
                prefix: self.prefix,
            },
        })
    }
}

/// An issuer: https, or this machine.
fn issuer(text: &str) -> Result<IssuerUrl, String> {
    let wrong =
        || format!("the issuer {text:?} is no https:// URL without user, query and fragment");
    let url = url::Url::parse(text).map_err(|_| wrong())?;
    let host = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(addr)) => addr.is_loopback(),
        Some(url::Host::Ipv6(addr)) => addr.is_loopback(),
        None => return Err(wrong()),
    };
    let is_safe = url.scheme() == "https" || (url.scheme() == "http" && host);
    let is_plain = url.username().is_empty() && url.password().is_none();
    let is_plain = is_plain && url.query().is_none() && url.fragment().is_none();
    match is_safe && is_plain {
        true => IssuerUrl::new(text.to_owned()).map_err(|_| wrong()),
        false => Err(wrong()),
    }
}

fn listed(text: &str) -> Vec<String> {
    let all = text.split(',').map(str::trim);
    all.filter(|it| !it.is_empty()).map(str::to_owned).collect()
}

fn bounded(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Refused};

    const PASSWORD: &str = "Zq3v8xW1pL0sT7yB9nK4mR2cV6hJ5gDe";

    fn load(flags: &[&str]) -> Result<Config, String> {
        let base = [
            "culvert-control",
            "--public-url",
            "https://hub.test",
            "--cookie-password",
            PASSWORD,
        ];
        let argv = base.iter().chain(flags).copied().map(Into::into);
        Config::load(argv, |_| None).map_err(|refused| match refused {
            Refused::Problems(problems) => problems.join("\n"),
            Refused::Usage(why) => why.to_string(),
        })
    }

    const ONE: [&str; 4] = [
        "--oidc-issuer",
        "https://id.test/realms/corp",
        "--oidc-client-id",
        "culvert",
    ];

    #[test]
    fn flags_and_a_file_make_providers_and_tiers() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "s3cret\n").unwrap();
        let file = dir.path().join("providers.toml");
        let text = "[[provider]]\nname = \"partner\"\nissuer = \"https://login.test\"\n\
                    client_id = \"hub\"\nclient_secret_file = \"secret\"\nprefix = \"p:\"\n\
                    groups_filter = [\"k8s,a\", \"b\"]\nscopes = [\"openid\", \"roles\"]\n";
        std::fs::write(&file, text).unwrap();
        let more = [
            "--oidc-providers",
            file.to_str().unwrap(),
            "--admin-groups",
            "ops,lead",
            "--read-groups",
            "dev,ops",
            "--oidc-groups-filter",
            "k8s-",
        ];
        let config = load(&[&ONE[..], &more].concat()).unwrap_or_else(|why| panic!("{why}"));
        let sign_in = config.sign_in.unwrap();
        let [first, second] = sign_in.oidc.providers() else {
            panic!("two providers")
        };
        let client = &first.client;
        assert_eq!(
            (client.name.as_str(), client.id.as_str()),
            ("default", "culvert")
        );
        assert_eq!(
            client.callback.as_str(),
            "https://hub.test/api/auth/callback"
        );
        assert_eq!(client.mapping.groups_filter, ["k8s-"]);
        assert_eq!(client.mapping.username_claim, "sub");
        let scopes: Vec<_> = client.scopes.iter().map(|it| it.as_str()).collect();
        assert_eq!(scopes, ["email", "profile"]);
        assert!(client.secret.is_none());
        let client = &second.client;
        assert_eq!(
            (client.name.as_str(), client.title.as_str()),
            ("partner", "partner")
        );
        assert_eq!(client.secret.as_ref().unwrap().secret(), "s3cret");
        assert_eq!(client.mapping.groups_filter, ["k8s,a", "b"]);
        let scopes: Vec<_> = client.scopes.iter().map(|it| it.as_str()).collect();
        assert_eq!(scopes, ["roles"], "openid is asked for anyway, once");
        let tier = |group: &str| sign_in.tiers.of("nobody", &[group.to_owned()]);
        assert_eq!(
            (tier("ops"), tier("dev")),
            (Some(Tier::Admin), Some(Tier::Read))
        );
    }

    #[test]
    fn half_and_dangerous_settings_are_start_errors() {
        for (flags, word) in [
            (
                &["--oidc-issuer", "https://id.test"][..],
                "--oidc-client-id",
            ),
            (&["--oidc-client-id", "a"], "--oidc-issuer"),
            (&["--oidc-client-secret", "a"], "--oidc-issuer"),
            (
                &["--oidc-issuer", "http://id.test", "--oidc-client-id", "a"],
                "https://",
            ),
            (
                &[
                    "--oidc-issuer",
                    "http://localhost.evil.test",
                    "--oidc-client-id",
                    "a",
                ],
                "https://",
            ),
            (
                &[
                    "--oidc-issuer",
                    "https://u:p@id.test",
                    "--oidc-client-id",
                    "a",
                ],
                "https://",
            ),
            (
                &[
                    "--oidc-issuer",
                    "https://id.test?a=b",
                    "--oidc-client-id",
                    "a",
                ],
                "https://",
            ),
            (
                &["--oidc-providers", "/nonexistent/p.toml"],
                "/nonexistent/p.toml",
            ),
        ] {
            let said = load(flags).err().unwrap_or_default();
            assert!(said.contains(word), "{flags:?}: {said}");
        }
        let said = load(&[&ONE[..], &["--oidc-prefix", "System:x"]].concat())
            .err()
            .unwrap();
        assert!(said.contains("Kubernetes"), "{said}");
        assert!(
            load(&[
                "--oidc-issuer",
                "http://127.0.0.1:5556/dex",
                "--oidc-client-id",
                "a"
            ])
            .is_ok()
        );
        let alone = ["culvert-control"]
            .iter()
            .chain(&ONE)
            .copied()
            .map(Into::into);
        let said = match Config::load(alone, |_| None) {
            Err(Refused::Problems(problems)) => problems.join("\n"),
            _ => String::new(),
        };
        assert!(said.contains("--cookie-password"), "{said}");
    }

    #[test]
    fn providers_that_could_speak_for_each_other_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("providers.toml");
        let one = |name: &str, rest: &str| {
            format!(
                "[[provider]]\nname = \"{name}\"\nissuer = \"https://a.test\"\nclient_id = \"c\"\n{rest}\n"
            )
        };
        for (text, word) in [
            (one("a", "") + &one("b", ""), "prefix"),
            (one("a", "prefix = \"x\"") + &one("a", ""), "called"),
            (one("break-glass", ""), "break-glass"),
            (one("A b", ""), "a-z"),
            (one("a", "secret = \"x\""), "unknown field"),
            (one("a", "client_secret_file = \"none\""), "none"),
            ("[[provider]]\nname = \"a\"\n".to_owned(), "issuer"),
        ] {
            std::fs::write(&file, &text).unwrap();
            let said = load(&["--oidc-providers", file.to_str().unwrap()]).err();
            let said = said.unwrap_or_default();
            assert!(said.contains(word), "{text}: {said}");
        }
        let flagged = [&ONE[..], &["--oidc-providers", file.to_str().unwrap()]].concat();
        std::fs::write(&file, one("b", "")).unwrap();
        assert!(load(&flagged).err().unwrap().contains("prefix"));
        std::fs::write(&file, one("b", "prefix = \"b:\"")).unwrap();
        assert!(load(&flagged).is_ok());
    }
}
