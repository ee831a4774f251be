//! Limits of the contract's section 16, with units. Each place that uses one names the close
//! reason for reaching it.

/// Streams one session may carry at once unless configured.
pub const STREAMS_DEFAULT: u32 = 1_024;
/// Most streams a configuration may allow in one session.
pub const STREAMS_MAX: u32 = 16_384;
/// Stream opens one agent may cause in a second.
pub const OPENS_PER_SECOND_MAX: u32 = 1_000;
/// Stream resets one agent may cause in a second.
pub const RESETS_PER_SECOND_MAX: u32 = 1_000;
/// Pings or BEATs one agent may send in a second.
pub const PINGS_PER_SECOND_MAX: u32 = 20;
/// Receive credit a yamux stream starts with, in bytes, both ways.
pub const WINDOW_INITIAL_BYTES: u32 = 262_144;
/// The same between our own ends that both announced it, in bytes.
pub const WINDOW_OWN_INITIAL_BYTES: u32 = 32 << 10;
/// Largest window between our own ends, in bytes.
pub const WINDOW_MAX_BYTES: u32 = 32 << 20;
/// Largest window towards foreign agents on WebSocket, in bytes.
pub const WINDOW_FOREIGN_MAX_BYTES: u32 = 8 << 20;
/// Bytes one stream may queue behind the carrier's socket.
pub const SEND_GATE_BYTES_MAX: usize = 32 << 10;
/// Largest yamux data frame we send, in bytes.
pub const FRAME_BYTES_MAX: usize = 16 << 10;

/// Largest WebSocket message accepted on an agent path, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Largest WebSocket message we send, in bytes.
pub const MESSAGE_SENT_BYTES_MAX: usize = 64 << 10;
/// Largest control message, head and body, in bytes.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 16 << 10;
/// Largest TLV block of a stream header, in bytes.
pub const STREAM_HEADER_BYTES_MAX: u16 = 4_096;
/// Longest reason in a dial answer, in bytes.
pub const DIAL_REASON_BYTES_MAX: u16 = 512;
/// Longest target name, in bytes.
pub const TARGET_NAME_BYTES_MAX: usize = 255;
/// Payload that may travel with an open before its answer, in bytes.
pub const FIRST_BYTES_MAX: usize = 16 << 10;

/// Request head: whole, in bytes.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// Request head: fields.
pub const HEAD_FIELDS_MAX: usize = 128;
/// Request head: one field, in bytes.
pub const HEAD_FIELD_BYTES_MAX: usize = 16 << 10;
/// Request head: cookies read.
pub const COOKIES_MAX: usize = 32;
/// Informational answers passed on for one request.
pub const INFORMATIONAL_MAX: u32 = 8;
/// Client bytes held back until the target's 101.
pub const UPGRADE_HELD_BYTES_MAX: usize = 64 << 10;
/// Groups impersonated by one request; more is a refusal, never a cut list.
pub const GROUPS_MAX: usize = 256;

/// Accept to first byte on HTTP and TLS listeners, ms.
pub const FIRST_BYTE_TIMEOUT_MS: u64 = 5_000;
/// TLS handshake, ms, absolute.
pub const TLS_HANDSHAKE_TIMEOUT_MS: u64 = 10_000;
/// Request head, ms, absolute.
pub const HEAD_TIMEOUT_MS: u64 = 10_000;
/// Upgrade and authentication, ms, absolute; also HELLO and GRANT on the control stream.
pub const UPGRADE_TIMEOUT_MS: u64 = 10_000;
/// Stream header on a new stream, ms.
pub const STREAM_HEADER_TIMEOUT_MS: u64 = 10_000;
/// Agent's dial of one address, ms.
pub const DIAL_TIMEOUT_MS: u64 = 10_000;
/// Hub's wait for the target, ms; then 504.
pub const DIAL_ANSWER_TIMEOUT_MS: u64 = 30_000;
/// Idle keep-alive client connection, ms.
pub const CLIENT_IDLE_TIMEOUT_MS: u64 = 120_000;
/// WebSocket close and TLS close, ms.
pub const CLOSE_TIMEOUT_MS: u64 = 5_000;
/// Carrier write without progress, ms.
pub const WRITE_STALL_TIMEOUT_MS: u64 = 10_000;
/// Stalled stream whose window is shut, ms.
pub const STREAM_STALL_TIMEOUT_MS: u64 = 3_600_000;
/// Slowest request body accepted, bytes a second over [`BODY_RATE_WINDOW_MS`].
pub const BODY_RATE_MIN_BYTES_PER_SECOND: u64 = 256;
/// Window of the body rate, ms.
pub const BODY_RATE_WINDOW_MS: u64 = 30_000;

/// BEAT period on culvert/1, ms.
pub const BEAT_INTERVAL_MS: u64 = 5_000;
/// Silence after which a culvert/1 carrier is dead, ms from the last byte received.
pub const BEAT_DEAD_MS: u64 = 15_000;
/// Age at which the hub asks for a new carrier, ms.
pub const CARRIER_LIFE_MAX_MS: u64 = 7 * 86_400_000;
/// Streams after which the hub asks for a new carrier: half of the ids there are.
pub const CARRIER_OPENS_MAX: u64 = 1 << 30;
/// The agent moves at a random point of this window, ms.
pub const CARRIER_MOVE_WINDOW_MS: u32 = 60_000;
/// Streams of a carrier that was left for its age or its ids end at the latest then, ms.
pub const CARRIER_MOVE_DEADLINE_MS: u32 = 86_400_000;
/// Ping period on compatible carriers, ms.
pub const PING_INTERVAL_MS: u64 = 15_000;
/// Silence after which a compatible carrier is dead, ms.
pub const PING_DEAD_MS: u64 = 45_000;
/// STATS period, ms.
pub const STATS_INTERVAL_MS: u64 = 10_000;

/// Reconnect ceiling, ms.
pub const BACKOFF_MAX_MS: u64 = 60_000;
/// Reconnect base, ms.
pub const BACKOFF_BASE_MS: u64 = 1_000;
/// Session life that resets the backoff, ms.
pub const BACKOFF_RESET_AFTER_MS: u64 = 30_000;
/// Least wait after 401 or 403, ms.
pub const BACKOFF_CREDENTIAL_MIN_MS: u64 = 30_000;
/// How long an agent stays with `websocket` alone for one hub address, ms.
pub const WEBSOCKET_ONLY_MEMORY_MS: u64 = 3_600_000;

/// Drain grace unless configured, ms.
pub const DRAIN_GRACE_DEFAULT_MS: u64 = 30_000;
/// Longest drain grace, ms.
pub const DRAIN_GRACE_MAX_MS: u64 = 86_400_000;
/// Overlap of two tokens at rotation unless asked otherwise, ms.
pub const ROTATION_OVERLAP_DEFAULT_MS: u64 = 86_400_000;

/// Swaps of one cluster's session in [`SWAP_WINDOW_MS`]; one more is held down.
pub const SWAPS_MAX: usize = 3;
/// Window in which swaps count, ms.
pub const SWAP_WINDOW_MS: u64 = 60_000;
/// Hold-down after too many swaps, ms.
pub const HOLD_DOWN_MS: u64 = 30_000;
/// Sessions of one cluster.
pub const SESSIONS_PER_CLUSTER_MAX: usize = 64;
/// Sessions of one data plane unless configured.
pub const SESSIONS_DEFAULT_MAX: usize = 20_000;
/// New sessions admitted in a second.
pub const ADMISSIONS_PER_SECOND_MAX: u32 = 500;
/// Failed authentications per source and minute before answers are delayed.
pub const AUTH_FAILURES_PER_MINUTE_MAX: u32 = 30;
/// The delay of such answers, ms.
pub const AUTH_FAILURE_DELAY_MS: u64 = 1_000;

/// Life of a data channel ticket, ms.
pub const TICKET_LIFE_MS: u64 = 30_000;
/// Idle data channel, ms.
pub const CHANNEL_IDLE_TIMEOUT_MS: u64 = 300_000;

/// Memory budget of a process unless configured, in bytes.
pub const MEMORY_BUDGET_DEFAULT_BYTES: usize = 1 << 30;

/// Tokens of one cluster, live at once.
pub const TOKENS_PER_CLUSTER_MAX: usize = 16;
/// CAs of agents that live at once: the one before, the present, the next.
pub const AGENT_CAS_MAX: usize = 4;
/// One CA certificate of agents, in bytes.
pub const AGENT_CA_BYTES_MAX: usize = 4 << 10;
/// Routes of one cluster.
pub const ROUTES_PER_CLUSTER_MAX: usize = 64;
/// Personal tokens that reach one cluster.
pub const PERSONAL_TOKENS_PER_CLUSTER_MAX: usize = 256;
/// Services that one personal token names in one cluster.
pub const GRANTS_PER_TOKEN_MAX: usize = 64;
/// Grants, and allowed groups, of one cluster's access policy.
pub const ACCESS_GROUPS_MAX: usize = 512;
/// One group or prefix of an access policy, in bytes.
pub const ACCESS_TEXT_BYTES_MAX: usize = 256;
/// Keys that open session cookies: the current and the previous one.
pub const COOKIE_KEYS_MAX: usize = 2;
/// Origins of our own pages.
pub const ORIGINS_MAX: usize = 32;
/// Subjects that signed out everywhere and are remembered.
pub const ENDED_SUBJECTS_MAX: usize = 50_000;
/// Longest subject of a session, in bytes.
pub const SUBJECT_BYTES_MAX: usize = 4_096;
/// Labels of one cluster or agent.
pub const LABELS_MAX: usize = 32;
/// One label key or value, in bytes.
pub const LABEL_BYTES_MAX: usize = 255;
/// Target names an agent may announce or be granted.
pub const TARGETS_MAX: usize = 256;
/// Clusters in one snapshot.
pub const CLUSTERS_MAX: usize = 100_000;
/// Changes in one update.
pub const CHANGES_MAX: usize = 100_000;
/// One encoded snapshot, update or report, in bytes.
pub const STATE_BYTES_MAX: usize = 64 << 20;
/// Entries of each list of one report.
pub const REPORT_ENTRIES_MAX: usize = 100_000;
