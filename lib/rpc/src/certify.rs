//! Requests for certificates, from a data plane to control.

use culvert_proto::id::ClusterId;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;

use crate::client::{CALL_DEADLINE, said};
use crate::generated::CertifyRequest;
use crate::generated::state_client::StateClient;
use crate::server::NotCertified;

/// Asks control for certificates while the link is up; clones share it.
#[derive(Clone)]
pub struct Certifier {
    channel: watch::Receiver<Option<Channel>>,
}

impl Certifier {
    pub(crate) fn new(channel: watch::Receiver<Option<Channel>>) -> Self {
        Self { channel }
    }

    /// A certificate (DER) for an agent of `cluster`, or for the listener of agents, by a request
    /// (PKCS#10).
    ///
    /// # Errors
    /// [`NotCertified`]: control is not there, does not answer within 5 s, or refuses.
    pub async fn certify(
        &self,
        cluster: Option<&ClusterId>,
        csr: Vec<u8>,
    ) -> Result<Vec<u8>, NotCertified> {
        let channel = self.channel.borrow().clone();
        let channel = channel.ok_or_else(|| NotCertified::Later("control is not there".into()))?;
        let request = CertifyRequest {
            cluster: cluster.map_or_else(String::new, ToString::to_string),
            csr: csr.into(),
        };
        let mut client = StateClient::new(channel);
        let answer = timeout(CALL_DEADLINE, client.certify(request)).await;
        let late = |_| NotCertified::Later("control did not answer within 5 s".into());
        match answer.map_err(late)? {
            Ok(answer) => Ok(answer.into_inner().certificate.to_vec()),
            Err(status) => Err(match status.code() {
                Code::FailedPrecondition | Code::InvalidArgument | Code::Unimplemented => {
                    NotCertified::Refused(said(&status))
                }
                _ => NotCertified::Later(said(&status)),
            }),
        }
    }
}
