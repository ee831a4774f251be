//! Who the agent is by certificate: there already, or to be asked for first.

use culvert_net::dial::HubUrl;
use culvert_net::tls::ClientTlsOptions;
use culvert_proto::hello::REGISTER_PATH;
use culvert_proto::id::ClusterId;
use culvert_proto::join::JoinString;
use culvert_proto::token::TokenText;

use super::reader::Reader;
use super::{Enrolment, hub_url};
use crate::credential::Kept;
use crate::enrol::{Bootstrap, Known, read, unix_s};

/// Prefix of bootstrap tokens.
const BOOTSTRAP_PREFIX: &str = "cve_";

/// Whether the text is a bootstrap token, which is good for a certificate alone.
pub(super) fn is_bootstrap(text: &str) -> bool {
    text.trim().starts_with(BOOTSTRAP_PREFIX)
}

impl Reader {
    /// The certificate that is there, or how to get one. Gives the join string back when it is
    /// about a token of sessions.
    pub(super) fn enrolment(
        &mut self,
        join: Option<JoinString>,
        hubs: &[HubUrl],
        cluster: Option<&ClusterId>,
        tls: &ClientTlsOptions,
    ) -> (Option<Enrolment>, Option<JoinString>) {
        let given = self.layers.get("token").cloned();
        let by_flag = given.as_ref().is_some_and(|it| is_bootstrap(&it.text));
        let by_join = join
            .as_ref()
            .is_some_and(|it| is_bootstrap(it.token.expose()));
        // A token of sessions that somebody asks for is used, whatever else is there.
        if (given.is_some() && !by_flag) || (join.is_some() && !by_join) {
            return (None, join);
        }
        let Some(dir) = self.path("state-dir") else {
            if by_flag || by_join {
                let why = "a bootstrap token needs --state-dir, which keeps the certificate that \
                           it is changed for";
                self.layers.problems.push(why.to_owned());
            }
            return (None, join.filter(|_| !by_join));
        };
        let known = self.known(&dir);
        let is_usable = known
            .as_ref()
            .is_some_and(|known| !known.validity.is_over(unix_s()));
        if is_usable || (known.is_some() && !by_flag && !by_join) {
            let bootstrap = None;
            return (Some(Enrolment { dir, bootstrap }), None);
        }
        if !by_flag && !by_join {
            return (None, join);
        }
        let token = match (&join, &given) {
            (Some(join), _) => Some(join.token.duplicate()),
            (None, given) => given
                .as_ref()
                .and_then(|it| TokenText::new(it.text.trim()).ok()),
        };
        let bootstrap = self.bootstrap(token, join.as_ref(), hubs, cluster, tls);
        (Some(Enrolment { dir, bootstrap }), None)
    }

    fn bootstrap(
        &mut self,
        token: Option<TokenText>,
        join: Option<&JoinString>,
        hubs: &[HubUrl],
        cluster: Option<&ClusterId>,
        tls: &ClientTlsOptions,
    ) -> Option<Bootstrap> {
        if join.is_some_and(|join| join.is_expired(unix_s())) {
            let why = "the join string is expired; make a new one with `culvert agent command CLUSTER --mtls`";
            self.layers.problems.push(why.to_owned());
        }
        if cluster.is_none() && !self.join_asked {
            let why = "a bootstrap token needs --cluster, the cluster that it was made for";
            self.layers.problems.push(why.to_owned());
        }
        if token.is_none() {
            let why = "the bootstrap token is no token; copy it again as a whole";
            self.layers.problems.push(why.to_owned());
        }
        let set = self.layers.get("registration-url");
        let set = set.map(|value| value.text.clone());
        let url = set
            .or_else(|| join.and_then(|join| join.register.clone()))
            .or_else(|| hubs.first().map(beside));
        let insecure = self.switch("allow-insecure-server");
        let url = url.map(|url| hub_url(&url, insecure));
        let url = match url? {
            Ok(url) => url,
            Err(why) => {
                self.layers
                    .problems
                    .push(format!("registration URL: {why}"));
                return None;
            }
        };
        Some(Bootstrap {
            token: token?,
            cluster: cluster?.clone(),
            url,
            tls: tls.clone(),
        })
    }

    fn known(&mut self, dir: &std::path::Path) -> Option<Known> {
        // Makes the directory, and proves that something can be kept there.
        let checked = Kept::check(dir).map(|_| ());
        let read = checked.and_then(|()| read(dir).map_err(|why| why.to_string()));
        read.unwrap_or_else(|why| {
            let why = format!("state directory {}: {why}", dir.display());
            self.layers.problems.push(why);
            None
        })
    }
}

/// The registration at a hub: `wss` becomes `https`, the path its own (P-27.7).
fn beside(hub: &HubUrl) -> String {
    let scheme = if hub.is_tls() { "https" } else { "http" };
    format!("{scheme}://{}{REGISTER_PATH}", hub.authority())
}
