//! The list. A new row goes to the end of its block; a code is never used again.

use super::{Retry, Side};

macro_rules! close_reasons {
    ($($name:ident = $code:literal, $word:literal, $side:ident, $status:expr, $retry:ident,
        $meaning:literal, $fix:literal;)*) => {
        /// Why a relay, stream, session or request ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum CloseReason {
            $(#[doc = $meaning] $name = $code,)*
        }

        impl CloseReason {
            /// Every reason, in the order of the codes.
            pub const ALL: &'static [CloseReason] = &[$(CloseReason::$name),*];

            /// The code on the wire.
            pub fn code(self) -> u16 {
                match self { $(CloseReason::$name => $code,)* }
            }

            /// The word: `Culvert-Error`, log field, metric label, audit word.
            pub fn as_str(self) -> &'static str {
                match self { $(CloseReason::$name => $word,)* }
            }

            /// Who caused it.
            pub fn side(self) -> Side {
                match self { $(CloseReason::$name => Side::$side,)* }
            }

            /// The status while no body byte has been sent; `None` where no status can tell.
            pub fn http_status(self) -> Option<u16> {
                match self { $(CloseReason::$name => $status,)* }
            }

            /// What the refused side should do.
            pub fn retry(self) -> Retry {
                match self { $(CloseReason::$name => Retry::$retry,)* }
            }

            /// What was seen, in one line.
            pub fn meaning(self) -> &'static str {
                match self { $(CloseReason::$name => $meaning,)* }
            }

            /// The one thing to do, in one line.
            pub fn fix(self) -> &'static str {
                match self { $(CloseReason::$name => $fix,)* }
            }
        }
    };
}

close_reasons! {
    // Clean ends: 1..
    Finished = 1, "finished", Client, None, No,
        "Both directions ended cleanly.", "Nothing to do.";
    ClientClosed = 2, "client_closed", Client, None, No,
        "The client ended first; what it had asked for was dropped.", "Nothing to do.";
    UpstreamClosed = 3, "upstream_closed", Upstream, None, No,
        "The service ended first, cleanly.", "Nothing to do.";
    Shutdown = 4, "shutdown", Dataplane, Some(503), AtOnce,
        "The process on the other end stops.", "Connect again; another one may already serve.";
    Replaced = 5, "replaced", Agent, None, No,
        "A newer session of the same agent, or of the cluster under policy replace, took over.",
        "Nothing to do; if it repeats, look for two agents with one credential.";

    // Client: 100..
    BadHead = 100, "bad_head", Client, Some(400), No,
        "The request head is malformed, ambiguous or names a field it must not touch.",
        "Send one Host, one framing and no protected name in Connection.";
    BadFraming = 101, "bad_framing", Client, Some(400), No,
        "The request body's framing is ambiguous or broken.",
        "Send either one Content-Length or Transfer-Encoding: chunked.";
    HeadTooLarge = 102, "head_too_large", Client, Some(431), No,
        "The request head is over 64 KiB, 128 fields or 16 KiB for one field.",
        "Send smaller or fewer header fields.";
    BodyTooLarge = 103, "body_too_large", Client, Some(413), No,
        "The request body is over the configured limit.",
        "Send less, or raise the body limit of this route.";
    Unauthenticated = 104, "unauthenticated", Client, Some(401), Slow,
        "No credential was shown, or it is not known here.",
        "Sign in, or mint a token: culvert token mint <cluster>.";
    TokenExpired = 105, "token_expired", Client, Some(401), Slow,
        "The credential shown has expired.",
        "Mint a new token: culvert token mint <cluster>.";
    TokenRevoked = 106, "token_revoked", Client, Some(401), Slow,
        "The credential shown was revoked.",
        "Ask who revoked it, then: culvert token mint <cluster>.";
    ClusterMismatch = 107, "cluster_mismatch", Client, Some(401), Slow,
        "The peer claims another cluster than its credential belongs to.",
        "Use the token of the cluster you name, or name none.";
    NotEnrolled = 108, "not_enrolled", Client, Some(401), Slow,
        "The join credential was used, expired or is bound to another cluster.",
        "Create a new join string for this cluster.";
    Forbidden = 109, "forbidden", Client, Some(403), Slow,
        "Policy refuses this peer here, for example an agent path asked with Origin or Cookie.",
        "Call from a permitted identity; browsers do not belong on agent paths.";
    NoIdentity = 110, "no_identity", Client, Some(403), No,
        "The request carries no identity to act as.",
        "Sign in, or map the user to a tier.";
    UnknownPath = 111, "unknown_path", Client, Some(404), No,
        "Nothing is served under this path.",
        "Check the URL; machine requests go to /tunnel/<cluster>/...";
    RateLimited = 112, "rate_limited", Client, Some(429), Backoff,
        "More requests than the configured rate.",
        "Slow down, or raise the rate limit.";
    CapUser = 113, "E_CAP_USER", Client, Some(429), Backoff,
        "This user holds as many watches or exec sessions as allowed.",
        "Close some, or raise the cap.";
    ClientReset = 114, "client_reset", Client, None, No,
        "The client broke the connection off.", "Look at the client; the tunnel is well.";
    ClientTimeout = 115, "client_timeout", Client, Some(408), No,
        "The client was too slow with its head or body.",
        "Send the head within 10 s and the body at 256 bytes/s or more.";
    ClientIdle = 116, "client_idle", Client, None, No,
        "A keep-alive connection was idle for its limit.", "Nothing to do; connect again.";
    ClientTls = 117, "client_tls", Client, None, No,
        "The TLS handshake with the client failed.",
        "Check certificate, TLS version and whether this port speaks TLS.";
    MethodRefused = 118, "method_refused", Client, Some(405), No,
        "This method is not served here.", "CONNECT is only for the proxy front.";
    UnknownCluster = 119, "unknown_cluster", Client, Some(404), No,
        "No cluster of this name is registered, or it is hidden from you.",
        "Check the name: culvert cluster list.";
    HelloTimeout = 120, "hello_timeout", Client, Some(408), Backoff,
        "The hello or upgrade did not complete within 10 s.",
        "Look for a slow or half-open path to the hub.";
    TooManyConnections = 121, "too_many_connections", Client, Some(503), Backoff,
        "One source holds as many unauthenticated connections as allowed.",
        "Close idle connections from this source.";
    ClientDead = 122, "client_dead", Client, None, No,
        "Bytes wait for the client, and for too long nothing was acknowledged and no probe answered.",
        "Look at the path to the client; the tunnel is well.";
    NameUnknown = 123, "name_unknown", Client, None, No,
        "The client's TLS asks for a server name that no route serves, or for none.",
        "Connect by the name of a sealed route: culvert route list <cluster>.";
    SignedOut = 124, "signed_out", Client, Some(401), Slow,
        "The person signed out everywhere; what they had opened was ended.", "Sign in again.";
    GrantEnded = 125, "grant_ended", Client, Some(403), No,
        "The right under which this was opened is over, or is another one now.",
        "Ask again: what is allowed now decides. Rights: culvert cluster show <cluster>.";

    // Path: 200..
    CarrierLost = 200, "carrier_lost", Path, None, AtOnce,
        "The agent's carrier broke while the stream was open.",
        "Ask again; if it repeats, look at the network between agent and hub.";
    CarrierDead = 201, "carrier_dead", Path, None, AtOnce,
        "No byte came from the other end of the carrier for its limit.",
        "Look for a firewall or NAT that drops idle flows without telling.";
    WriteStalled = 202, "write_stalled", Path, None, AtOnce,
        "A write on the carrier made no progress for 10 s.",
        "Look at the network between agent and hub.";
    HubName = 203, "hub_name", Path, None, Backoff,
        "The hub's host name did not resolve.", "Check the name and this host's DNS.";
    HubRefused = 204, "hub_refused", Path, None, Backoff,
        "The hub's address refused the connection.",
        "Check port and firewall, and that the data plane runs.";
    HubTimeout = 205, "hub_timeout", Path, None, Backoff,
        "Connecting to the hub took too long.", "Check routes and outbound firewall rules.";
    HubUnreachable = 206, "hub_unreachable", Path, None, Backoff,
        "There is no route to the hub.", "Check this host's network and IP family.";
    ProxyRefused = 207, "proxy_refused", Path, None, Backoff,
        "The outbound proxy refused or failed the tunnel.",
        "Allow the hub's host and port in the proxy, or set NO_PROXY.";
    ProxyAuth = 208, "proxy_auth", Path, None, Slow,
        "The outbound proxy asked for credentials (407).",
        "Put user and password into the proxy URL.";
    TlsUnknownCa = 209, "tls_unknown_ca", Path, None, Slow,
        "The hub's certificate comes from an issuer this host does not trust.",
        "Pass the issuer as a CA file, or pin the key; a proxy may inspect TLS here.";
    TlsName = 210, "tls_name", Path, None, Slow,
        "The hub's certificate is for another name.",
        "Use a name that the certificate lists.";
    TlsExpired = 211, "tls_expired", Path, None, Slow,
        "The hub's certificate is expired or not yet valid here.",
        "Renew it, or mend this host's clock.";
    TlsFailed = 212, "tls_failed", Path, None, Backoff,
        "The TLS handshake with the hub failed.",
        "Check TLS versions, and whether this port speaks TLS.";
    ClockSkew = 213, "clock_skew", Path, None, Slow,
        "This host's clock and the hub's differ by minutes.", "Mend the clock (NTP).";
    GatewayRefused = 214, "gateway_refused", Path, None, Slow,
        "A proxy or gateway in front of the hub answered 403; the token was not judged.",
        "Let the agent paths through the gateway.";
    WrongPath = 215, "wrong_path", Path, None, Slow,
        "The server does not know the agent path (404).",
        "Check the URL's path; agents connect to /agent.";
    HubError = 216, "hub_error", Path, None, Backoff,
        "The hub or a gateway answered 5xx; the token was not rejected.",
        "Wait; look at the hub if it lasts.";
    UpgradeMangled = 217, "upgrade_mangled", Path, None, AtOnce,
        "The upgrade did not come through as sent; a box in between changed it.",
        "Nothing: the agent falls back to WebSocket. If that fails too, exempt this host.";
    Redirected = 218, "redirected", Path, None, Slow,
        "The hub's address answers with a redirect, which agents never follow.",
        "Use the final URL.";

    // Data plane: 300..
    Overload = 300, "overload", Dataplane, Some(503), Backoff,
        "The data plane is at 80 percent of its memory budget or at a process-wide limit.",
        "Wait; raise the budget or add a data plane.";
    TooManyStreams = 301, "too_many_streams", Dataplane, Some(503), Backoff,
        "The agent's session carries as many streams as it may.",
        "Add an agent, or raise --max-conns.";
    TooManyRequests = 302, "too_many_requests", Dataplane, Some(503), Backoff,
        "The cluster has as many concurrent requests as configured.",
        "Wait, or raise the cluster's limit.";
    Draining = 303, "draining", Dataplane, Some(503), AtOnce,
        "The data plane is about to stop.", "Connect again; another one may already serve.";
    DrainDeadline = 304, "drain_deadline", Dataplane, None, AtOnce,
        "The drain grace ended before the stream did.",
        "Ask again; raise --drain-grace for long streams.";
    NoTable = 305, "no_table", Dataplane, Some(503), Backoff,
        "The data plane has no table yet and serves nothing without one.",
        "Start control, or give a clusters file.";
    AuditUnavailable = 306, "audit_unavailable", Dataplane, Some(503), Backoff,
        "The audit spool cannot hold the row this request needs.",
        "Free disk space for the spool; unaudited traffic goes on.";
    StreamStalled = 307, "stream_stalled", Dataplane, None, Backoff,
        "The stream's reader took no byte for the stall limit.",
        "Look at the reader; raise the stall limit if pauses are normal.";
    BudgetCut = 308, "budget_cut", Dataplane, None, Backoff,
        "Memory ran short, and this was the largest stalled stream.",
        "Look at the reader; raise the memory budget.";
    Internal = 309, "internal", Dataplane, Some(500), Backoff,
        "A defect; the log has the details under this request id.",
        "Report it with the log lines.";
    Paced = 310, "paced", Dataplane, Some(503), Backoff,
        "Too many agents connect at once, or memory is short; this one is asked to wait.",
        "Nothing: the agent returns after Retry-After.";
    TooManySessions = 311, "too_many_sessions", Dataplane, Some(503), Backoff,
        "The cluster or the data plane holds as many sessions as allowed.",
        "Run fewer agents for this cluster, or add a data plane.";
    HoldDown = 312, "hold_down", Dataplane, Some(503), Backoff,
        "Agents replaced each other more than three times in a minute.",
        "Stop one of the agents that share this credential, or use policy spread.";
    UnknownEnd = 313, "unknown_end", Dataplane, None, No,
        "The data plane stopped while an audited request ran; how it ended is not known.",
        "Look at the target itself for what became of the request.";

    // Control: 400..
    Revoked = 400, "revoked", Control, None, Slow,
        "The cluster's access was revoked; its sessions and streams were cut.",
        "Mint a new token once the reason is gone.";
    Disabled = 401, "disabled", Control, Some(403), Slow,
        "The cluster is disabled.", "Enable it: culvert cluster enable <cluster>.";
    RouteRemoved = 402, "route_removed", Control, None, No,
        "The route that led to the service was removed or leads elsewhere now.",
        "Connect again, or add the route: culvert route add.";
    ControlAbsent = 403, "control_absent", Control, Some(503), Backoff,
        "Control does not answer; tunnels and sessions go on without it.",
        "Start control, or look at --control-api of the data plane.";

    // Agent: 500..
    AgentAbsent = 500, "agent_absent", Agent, Some(503), Backoff,
        "No agent of this cluster is connected.",
        "Look at the agent: culvert status <cluster>.";
    AgentDraining = 501, "agent_draining", Agent, Some(503), AtOnce,
        "The cluster's only agents are about to stop.", "Ask again in a moment.";
    AgentReset = 502, "agent_reset", Agent, None, Backoff,
        "The agent broke the stream off without a reason.", "Look at the agent's log.";
    AgentOverload = 503, "agent_overload", Agent, Some(503), Backoff,
        "The agent refused the stream because it is at its own limit.",
        "Add an agent, or raise its --max-conns.";
    Protocol = 504, "protocol", Agent, Some(502), Backoff,
        "The peer broke the protocol; the carrier was closed.",
        "Upgrade the older end; report it if both are current.";
    RateViolation = 505, "rate_violation", Agent, None, Backoff,
        "The peer opened, reset or pinged faster than allowed; the carrier was closed.",
        "Look at what drives this agent.";
    Duplicate = 506, "duplicate", Agent, Some(409), Slow,
        "Another agent holds this cluster's session and the policy refuses a second.",
        "Stop the other agent, or choose policy spread or replace.";
    StaleEpoch = 507, "stale_epoch", Agent, None, AtOnce,
        "The session is no longer the current one.", "Nothing: the newer session serves.";
    StreamRefused = 508, "stream_refused", Agent, Some(502), Backoff,
        "The agent refused to open the stream.", "Look at the agent's log.";
    NoCommonVersion = 509, "no_common_version", Agent, Some(426), Slow,
        "The two ends speak no common protocol version or upgrade.",
        "Upgrade the older end; a hub serves agents of the last two minor versions.";
    TargetNotAllowed = 510, "target_not_allowed", Agent, Some(403), No,
        "The target asked for is not the agent's own, or was not granted.",
        "Let the hub's target address equal the agent's --target.";

    TargetCredential = 511, "target_credential", Agent, Some(502), Backoff,
        "The agent cannot read the service-account token it has to send.",
        "Look at the file behind the agent's --sa-token-path.";
    IdentityNotAllowed = 512, "identity_not_allowed", Agent, Some(403), No,
        "The agent impersonates no such user or group.",
        "Allow it at the agent: --impersonate-users, --impersonate-groups.";

    // Upstream: 600..
    DialRefused = 600, "dial_refused", Upstream, Some(502), Backoff,
        "The service refused the agent's connection.",
        "Check that the service runs at the agent's --target.";
    DialUnreachable = 601, "dial_unreachable", Upstream, Some(502), Backoff,
        "The agent has no route to the service.", "Check network policy at the agent.";
    DialName = 602, "dial_name", Upstream, Some(502), Backoff,
        "The service's name did not resolve at the agent.", "Check the name in --target.";
    TargetTls = 603, "target_tls", Upstream, Some(502), Backoff,
        "TLS between agent and service failed.",
        "Give the agent the service's CA (--ca-cert).";
    DialTimeout = 604, "dial_timeout", Upstream, Some(504), Backoff,
        "The service did not accept the connection in time.",
        "Check the service's load and the network policy at the agent.";
    AnswerTimeout = 605, "answer_timeout", Upstream, Some(504), Backoff,
        "The service did not answer in time.", "Look at the service; raise the answer limit.";
    UpstreamReset = 606, "upstream_reset", Upstream, Some(502), Backoff,
        "The service broke the connection off.", "Look at the service's log.";
    UpstreamProtocol = 607, "upstream_protocol", Upstream, Some(502), Backoff,
        "The service's answer is not valid HTTP.",
        "Check --target and whether the service wants TLS (--plain-target).";
}
