//! What the two sides of a pair share: certificates, pairing codes, join strings, stores.
//!
//! The clock is an argument everywhere (`now_unix_s`). Only the stores do I/O.
#![forbid(unsafe_code)]

mod authority;
mod broker;
mod check;
mod code;
mod describe;
mod identity;
mod join;
mod name;
mod registration;
mod store;
mod voucher;
mod word;

pub use authority::{
    Authority, BACKDATE_S, CA_LIFE_S, LEAF_LIFE_S, MakeError, RequestError, self_signed,
};
pub use broker::{BrokerState, BrokerStateError};
pub use check::{Fault, Validity, check_chain, info_hash};
pub use code::PairingCode;
pub use culvert_pki::{CSR_BYTES_MAX, Key, KeyFault, RequestFault};
pub use describe::{Described, describe};
pub use identity::{Chain, Identity, IdentityError};
pub use join::{JOIN_RELAYS_MAX, PairJoin};
pub use name::{NAME_BYTES_MAX, NameError, check_name, check_relay};
pub use registration::{PairId, PairIdError, RENEW_BEFORE_S, Registration, RegistrationError};
pub use store::{
    DOCUMENT_BYTES_MAX, DOCUMENTS_MAX, Document, FileStore, Found, Kept, KubeAccess, Listing,
    RedeemError, Revision, SecretStore, Store, StoreError, Stored,
};
pub use voucher::{CODE_LIFE_S, Refused, Use, Voucher};
pub use word::WordError;
