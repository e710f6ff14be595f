//! One certificate, from the order to the file. Every step that the server would remember is on our
//! disk first, so that whoever comes back after a crash goes on where it was.

use std::{fmt, sync::Arc, time::Duration};

use instant_acme::{
    Account, AccountBuilder, AuthorizationStatus, ChallengeStatus, ChallengeType, Identifier,
    NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tokio::{sync::Mutex, time::timeout};

use super::{
    challenges::{self, Challenges, Shown},
    dns::{self, Dns},
    store::{KeptOrder, Store, Validity},
    wire::Wire,
};
use crate::config::{self, ChallengeWord};

/// How long the server may take to look at a challenge, or to sign.
const POLL: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(120));
/// For one order in all, DNS included.
const ORDER_MAX: Duration = Duration::from_secs(15 * 60);
/// The server's own words, where they are kept and shown.
const WORDS_MAX: usize = 500;

/// Orders certificates of one account.
#[derive(Debug)]
pub(super) struct Issuer {
    config: config::Acme,
    store: Arc<Store>,
    challenges: Arc<Challenges>,
    dns: Option<Dns>,
    wire: Wire,
    account: Mutex<Option<Known>>,
}

/// The account, once the server was asked.
#[derive(Clone)]
struct Known(Account);

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.id())
    }
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{}", first_words(&.0.to_string()))]
    Server(#[from] instant_acme::Error),
    #[error("the ACME server did not see that the name is ours: {}", first_words(.0))]
    NotShown(String),
    #[error("the ACME server does not offer {0} for it")]
    NotOffered(&'static str),
    #[error("dns-01 needs acme.dns_hook or [acme.dns_update]")]
    NoDns,
    #[error(transparent)]
    Dns(#[from] dns::Error),
    #[error("cannot keep it: {0}")]
    Disk(#[from] std::io::Error),
    #[error("no certificate for the challenge: {0}")]
    NoCertificate(#[from] challenges::NotShown),
    #[error("no key: {0}")]
    Key(#[from] rcgen::Error),
    #[error("the order came to an end that is none: {0:?}")]
    Stuck(OrderStatus),
    #[error("it took too long")]
    TimedOut,
}

impl Error {
    /// What the server has refused stays refused. What did not reach it is tried again.
    fn ends_the_order(&self) -> bool {
        match self {
            Self::Server(error) => matches!(error, instant_acme::Error::Api(_)),
            Self::NotShown(_) | Self::NotOffered(_) | Self::Stuck(_) => true,
            Self::NoDns | Self::Dns(_) | Self::NoCertificate(_) | Self::Disk(_) => false,
            Self::Key(_) | Self::TimedOut => false,
        }
    }

    fn is_about_the_account(&self) -> bool {
        let Self::Server(instant_acme::Error::Api(problem)) = self else { return false };
        problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:accountDoesNotExist")
    }
}

/// What is shown for one authorization.
enum Proof {
    Shown(#[expect(dead_code, reason = "shown until it is dropped")] Shown),
    Record(dns::Record),
}

impl Issuer {
    pub(super) fn new(
        config: config::Acme,
        store: Arc<Store>,
        challenges: Arc<Challenges>,
        dns: Option<Dns>,
        wire: Wire,
    ) -> Self {
        Self { config, store, challenges, dns, wire, account: Mutex::default() }
    }

    pub(super) fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Brings the order for `name` to its end, be it a new one or one that was under way.
    pub(super) async fn issue(&self, name: &str) -> Result<Validity, Error> {
        let result = timeout(ORDER_MAX, self.go_on(name)).await.unwrap_or(Err(Error::TimedOut));
        if result.as_ref().is_err_and(Error::is_about_the_account) {
            self.forget_account().await?;
        }
        result
    }

    async fn go_on(&self, name: &str) -> Result<Validity, Error> {
        let account = self.account().await?;
        let (mut order, kept) = match self.resume(&account, name).await? {
            Some(resumed) => resumed,
            None => self.order(&account, name).await?,
        };
        let result = self.bring_to_its_end(&mut order, &kept).await;
        if result.as_ref().err().is_none_or(Error::ends_the_order) {
            self.store.forget_order(name)?;
        }
        result
    }

    /// The account: as it was kept, or a new one.
    async fn account(&self) -> Result<Account, Error> {
        let mut known = self.account.lock().await;
        if let Some(Known(account)) = &*known {
            return Ok(account.clone());
        }
        let builder = Account::builder_with_http(Box::new(self.wire.clone()));
        let account = match self.store.account()? {
            Some(kept) => builder.from_credentials(kept).await?,
            None => self.make_account(builder).await?,
        };
        *known = Some(Known(account.clone()));
        Ok(account)
    }

    async fn make_account(&self, builder: AccountBuilder) -> Result<Account, Error> {
        let contact: Vec<_> = self.config.contact.iter().map(String::as_str).collect();
        let new = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let (account, kept) = builder.create(&new, self.config.directory.clone(), None).await?;
        self.store.keep_account(&kept)?;
        tracing::info!(account = account.id(), "an ACME account was made");
        Ok(account)
    }

    /// The server has closed the account, or lost it: the next order makes another.
    async fn forget_account(&self) -> Result<(), Error> {
        tracing::warn!("the ACME server does not know our account any more");
        *self.account.lock().await = None;
        Ok(self.store.forget_account()?)
    }

    /// The order that a process before this one has left.
    async fn resume(
        &self,
        account: &Account,
        name: &str,
    ) -> Result<Option<(Order, KeptOrder)>, Error> {
        let Some(kept) = self.store.order(name)? else { return Ok(None) };
        if kept.account == account.id() {
            match account.order(kept.url.clone()).await {
                Ok(mut order) => {
                    let status = order.state().status;
                    if status != OrderStatus::Invalid {
                        tracing::info!(name, ?status, "an order goes on");
                        return Ok(Some((order, kept)));
                    }
                }
                // The server knows it no more.
                Err(instant_acme::Error::Api(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.store.forget_order(name)?;
        Ok(None)
    }

    async fn order(&self, account: &Account, name: &str) -> Result<(Order, KeptOrder), Error> {
        let key = KeyPair::generate()?.serialize_pem();
        let identifiers = [Identifier::Dns(name.to_owned())];
        let order = account.new_order(&NewOrder::new(&identifiers)).await?;
        let (name, account) = (name.to_owned(), account.id().to_owned());
        let kept = KeptOrder { name, url: order.url().to_owned(), account, key };
        self.store.keep_order(&kept)?;
        Ok((order, kept))
    }

    async fn bring_to_its_end(
        &self,
        order: &mut Order,
        kept: &KeptOrder,
    ) -> Result<Validity, Error> {
        if order.state().status == OrderStatus::Pending {
            self.show(order).await?;
        }
        if order.state().status == OrderStatus::Ready {
            order.finalize_csr(&request(kept)?).await?;
        }
        let chain = match order.state().status {
            OrderStatus::Processing => order.poll_certificate(&POLL).await?,
            OrderStatus::Valid => {
                order.certificate().await?.ok_or(Error::Stuck(OrderStatus::Valid))?
            }
            status @ (OrderStatus::Pending | OrderStatus::Ready | OrderStatus::Invalid) => {
                return Err(Error::Stuck(status));
            }
        };
        Ok(self.store.keep_certificate(&kept.name, &kept.key, &chain)?)
    }

    /// Shows that the order's names are ours, and takes down what was shown for it.
    async fn show(&self, order: &mut Order) -> Result<(), Error> {
        let mut proofs = Vec::new();
        let seen = async {
            let mut authorizations = order.authorizations();
            while let Some(authorization) = authorizations.next().await {
                let mut authorization = authorization?;
                if authorization.status != AuthorizationStatus::Pending {
                    continue;
                }
                let (kind, word) = self.kind(authorization.wildcard);
                let challenge = authorization.challenge(kind.clone());
                let mut challenge = challenge.ok_or(Error::NotOffered(word))?;
                proofs.push(self.prove(&kind, &challenge).await?);
                // A process before this one may have said so already.
                if challenge.status == ChallengeStatus::Pending {
                    challenge.set_ready().await?;
                }
            }
            match order.poll_ready(&POLL).await {
                Ok(OrderStatus::Ready) => Ok(()),
                Ok(_) | Err(instant_acme::Error::Api(_)) => Err(why_not(order).await?),
                Err(error) => Err(error.into()),
            }
        };
        let seen = seen.await;
        for proof in proofs {
            if let (Proof::Record(record), Some(dns)) = (proof, &self.dns) {
                dns.clear(record).await;
            }
        }
        seen
    }

    fn kind(&self, wildcard: bool) -> (ChallengeType, &'static str) {
        match self.config.challenge {
            ChallengeWord::Dns01 => (ChallengeType::Dns01, "dns-01"),
            _ if wildcard => (ChallengeType::Dns01, "dns-01"),
            ChallengeWord::Http01 => (ChallengeType::Http01, "http-01"),
            ChallengeWord::TlsAlpn01 => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
        }
    }

    async fn prove(
        &self,
        kind: &ChallengeType,
        challenge: &instant_acme::ChallengeHandle<'_>,
    ) -> Result<Proof, Error> {
        let authorization = challenge.key_authorization();
        let host = match challenge.identifier().identifier {
            Identifier::Dns(host) => host.clone(),
            other => return Err(Error::NotShown(format!("{other:?} is no host"))),
        };
        Ok(match kind {
            ChallengeType::Dns01 => {
                let dns = self.dns.as_ref().ok_or(Error::NoDns)?;
                Proof::Record(dns.set(&host, authorization.dns_value()).await?)
            }
            ChallengeType::TlsAlpn01 => {
                let digest = authorization.digest();
                Proof::Shown(self.challenges.show_certificate(&host, digest.as_ref())?)
            }
            _ => Proof::Shown(self.challenges.show_file(&challenge.token, authorization.as_str())),
        })
    }
}

/// The request for a certificate with the key that was kept with the order.
fn request(kept: &KeptOrder) -> Result<Vec<u8>, Error> {
    let key = KeyPair::from_pem(&kept.key)?;
    let mut params = CertificateParams::new(vec![kept.name.clone()])?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&key)?.der().to_vec())
}

/// What the server says of the challenges that it did not accept.
async fn why_not(order: &mut Order) -> Result<Error, Error> {
    order.refresh().await?;
    let mut words = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let authorization = authorization?;
        let errors =
            authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        words.extend(errors.map(ToString::to_string));
    }
    Ok(Error::NotShown(if words.is_empty() { "no reason given".into() } else { words.join("; ") }))
}

/// Of a text that somebody else wrote: enough, in one line.
fn first_words(text: &str) -> String {
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().take(WORDS_MAX).map(plain).collect()
}
