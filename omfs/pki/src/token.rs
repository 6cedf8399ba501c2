//! Join tokens: one line of text that lets a machine join, or as many as were asked for, until it
//! expires or is withdrawn.
//!
//! `omfs1-` and then in lower-case hex: cluster name length (1 byte) and name, CA node id (4 bytes),
//! BLAKE3 fingerprint of the CA certificate (32), secret (16), expiry in seconds since 1970 (8),
//! and the first 4 bytes of the BLAKE3 hash of all before, which tells a typing error from a wrong
//! token. Numbers are big-endian. The CA node keeps only hashes of secrets ([`TokenBook`]).

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::ids::NodeId;
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};

use super::error::PkiError;
use super::files;
use super::name::{ClusterName, check_node_id};

const PREFIX: &str = "omfs1-";
/// Bytes of the random secret.
pub const SECRET_BYTES: usize = 16;
const CHECK_BYTES: usize = 4;
/// Hex digits of a secret's hash by which its token is called.
const ID_DIGITS: usize = 12;
/// Tokens that may be outstanding at once.
const TOKENS_MAX: usize = 1000;

/// Why a token is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TokenError {
    #[error("this is no join token: it starts with {PREFIX} (made by `omfs cluster token`)")]
    NotAToken,
    #[error("the join token is damaged: copy it again, whole")]
    Damaged,
    #[error("the join token has expired: make a new one by `omfs cluster token`")]
    Expired,
    #[error("the join token is not known here: it was made for another cluster, or withdrawn")]
    Unknown,
    #[error("the join token has been used: make a new one by `omfs cluster token`")]
    Used,
    #[error("more than {TOKENS_MAX} join tokens are outstanding: wait until some expire")]
    TooMany,
}

/// What a token says.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The cluster it lets one join.
    pub cluster: ClusterName,
    /// The node that holds the CA key and signs.
    pub authority: NodeId,
    /// Fingerprint of the CA certificate, see [`fingerprint`].
    pub ca_fingerprint: [u8; 32],
    /// Shown to the CA node, over TLS pinned to the fingerprint.
    pub secret: [u8; SECRET_BYTES],
    /// Seconds since 1970 when it stops working.
    pub expires_s: u64,
}

/// A certificate's fingerprint: BLAKE3 of its DER form.
#[must_use]
pub fn fingerprint(der: &[u8]) -> [u8; 32] {
    *blake3::hash(der).as_bytes()
}

impl Token {
    /// Whether it has expired by this machine's clock.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.expires_s <= now_s()
    }

    fn to_bytes(&self) -> Vec<u8> {
        let name = self.cluster.as_str().as_bytes();
        let mut bytes = vec![u8::try_from(name.len()).unwrap_or(u8::MAX)];
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(&self.authority.0.to_be_bytes());
        bytes.extend_from_slice(&self.ca_fingerprint);
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&self.expires_s.to_be_bytes());
        let check = fingerprint(&bytes);
        bytes.extend_from_slice(&check[..CHECK_BYTES]);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK_BYTES)?)?;
        if fingerprint(body)[..CHECK_BYTES] != *check {
            return None;
        }
        let (length, rest) = body.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        let (authority, rest) = rest.split_first_chunk()?;
        let (ca_fingerprint, rest) = rest.split_first_chunk()?;
        let (secret, rest) = rest.split_first_chunk()?;
        let authority = NodeId(u32::from_be_bytes(*authority));
        check_node_id(authority).ok()?;
        Some(Self {
            cluster: std::str::from_utf8(name).ok()?.parse().ok()?,
            authority,
            ca_fingerprint: *ca_fingerprint,
            secret: *secret,
            expires_s: u64::from_be_bytes(rest.try_into().ok()?),
        })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret must not reach a log.
        f.debug_struct("Token")
            .field("cluster", &self.cluster)
            .field("authority", &self.authority)
            .field("expires_s", &self.expires_s)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        f.write_str(&to_hex(&self.to_bytes()))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let hex = text
            .trim()
            .strip_prefix(PREFIX)
            .ok_or(TokenError::NotAToken)?;
        from_hex(hex)
            .and_then(|bytes| Self::from_bytes(&bytes))
            .ok_or(TokenError::Damaged)
    }
}

/// Parses a token; the same as `text.parse()`.
///
/// # Errors
/// [`TokenError::NotAToken`] or [`TokenError::Damaged`]; expiry is not looked at.
pub fn parse(text: &str) -> Result<Token, TokenError> {
    text.parse()
}

pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

pub(super) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| (*byte as char).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
            _ => None,
        })
        .collect()
}

pub(super) fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The outstanding tokens of the CA node, as hashes in `tokens.json`.
#[derive(Debug)]
pub struct TokenBook {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    /// BLAKE3 of the secret, in hex.
    hash: String,
    expires_s: u64,
    /// How many machines may still join; without a number (earlier versions) any.
    #[serde(default)]
    uses: Option<u32>,
}

impl Entry {
    fn id(&self) -> &str {
        self.hash.get(..ID_DIGITS).unwrap_or(&self.hash)
    }

    fn is_usable(&self) -> bool {
        self.expires_s > now_s() && self.uses != Some(0)
    }
}

/// An outstanding token as it may be shown: without its secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenEntry {
    /// By which it is withdrawn.
    pub id: String,
    /// Seconds since 1970 when it stops working.
    pub expires_s: u64,
    /// How many machines may still join with it; `None` is any number.
    pub uses: Option<u32>,
}

impl TokenBook {
    /// The book kept in `path`; the file need not exist.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    fn entries(&self) -> Result<Vec<Entry>, PkiError> {
        let Some(text) = files::read(&self.path)? else {
            return Ok(Vec::new());
        };
        serde_json::from_str(&text).map_err(|error| PkiError::Damaged {
            path: self.path.clone(),
            reason: error.to_string(),
        })
    }

    fn replace(&self, entries: &[Entry]) -> Result<(), PkiError> {
        let text = serde_json::to_vec_pretty(entries).unwrap_or_default();
        files::replace(&self.path, &text)
    }

    /// Makes a secret that is accepted for `lifetime`, from `uses` machines, and forgets expired
    /// ones.
    ///
    /// # Errors
    /// The file could not be read or replaced, or too many tokens are outstanding.
    pub fn issue(
        &self,
        lifetime: Duration,
        uses: u32,
    ) -> Result<([u8; SECRET_BYTES], u64), PkiError> {
        let mut secret = [0; SECRET_BYTES];
        OsRng
            .try_fill_bytes(&mut secret)
            .map_err(|error| PkiError::Tls(error.to_string()))?;
        let expires_s = now_s().saturating_add(lifetime.as_secs());
        let mut entries = self.entries()?;
        entries.retain(|entry| entry.expires_s > now_s());
        if entries.len() >= TOKENS_MAX {
            return Err(TokenError::TooMany.into());
        }
        entries.push(Entry {
            hash: blake3::hash(&secret).to_hex().to_string(),
            expires_s,
            uses: Some(uses),
        });
        self.replace(&entries)?;
        Ok((secret, expires_s))
    }

    /// Accepts a secret or says why not. Takes as long for a wrong secret as for a right one.
    ///
    /// # Errors
    /// [`TokenError::Unknown`], [`TokenError::Expired`] or [`TokenError::Used`]; the file could not
    /// be read.
    pub fn check(&self, secret: &[u8]) -> Result<(), PkiError> {
        let entries = self.entries()?;
        let at = find(&entries, secret).ok_or(TokenError::Unknown)?;
        match &entries[at] {
            entry if entry.is_usable() => Ok(()),
            entry if entry.uses == Some(0) => Err(TokenError::Used.into()),
            _ => Err(TokenError::Expired.into()),
        }
    }

    /// Counts one machine that has joined with a secret that was accepted.
    ///
    /// # Errors
    /// As for [`check`](Self::check); the file could not be replaced.
    pub fn spend(&self, secret: &[u8]) -> Result<(), PkiError> {
        self.check(secret)?;
        let mut entries = self.entries()?;
        let at = find(&entries, secret).ok_or(TokenError::Unknown)?;
        let entry = &mut entries[at];
        entry.uses = entry.uses.map(|uses| uses.saturating_sub(1));
        self.replace(&entries)
    }

    /// The tokens that still work.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn list(&self) -> Result<Vec<TokenEntry>, PkiError> {
        let entries = self.entries()?;
        let usable = entries.iter().filter(|entry| entry.is_usable());
        let shown = usable.map(|entry| TokenEntry {
            id: entry.id().to_owned(),
            expires_s: entry.expires_s,
            uses: entry.uses,
        });
        Ok(shown.collect())
    }

    /// Makes a token worthless; whether there was one of that id.
    ///
    /// # Errors
    /// The file could not be read or replaced.
    pub fn withdraw(&self, id: &str) -> Result<bool, PkiError> {
        let mut entries = self.entries()?;
        let before = entries.len();
        entries.retain(|entry| entry.id() != id);
        if entries.len() == before {
            return Ok(false);
        }
        self.replace(&entries)?;
        Ok(true)
    }
}

/// Where the entry of a secret is. No early exit, and blake3::Hash compares in constant time.
fn find(entries: &[Entry], secret: &[u8]) -> Option<usize> {
    let shown = blake3::hash(secret);
    let mut found = None;
    for (at, entry) in entries.iter().enumerate() {
        if blake3::Hash::from_hex(&entry.hash).is_ok_and(|hash| hash == shown) {
            found = Some(at);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> Token {
        Token {
            cluster: "lab".parse().unwrap(),
            authority: NodeId(1),
            ca_fingerprint: [7; 32],
            secret: [9; SECRET_BYTES],
            expires_s: 1 << 33,
        }
    }

    #[test]
    fn a_token_survives_being_written_and_read_with_spaces_around() {
        let text = format!("  {}\n", token());
        assert!(text.trim().starts_with("omfs1-"));
        assert_eq!(text.parse(), Ok(token()));
        assert!(!format!("{:?}", token()).contains("secret"));
    }

    #[test]
    fn every_single_changed_character_is_noticed() {
        let text = token().to_string();
        for at in PREFIX.len()..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            let bad = String::from_utf8(bytes).unwrap();
            assert_eq!(parse(&bad), Err(TokenError::Damaged), "character {at}");
            assert_eq!(parse(&text[..at]), Err(TokenError::Damaged), "cut at {at}");
        }
        assert_eq!(parse("hello"), Err(TokenError::NotAToken));
    }

    #[test]
    fn the_book_accepts_its_own_secrets_until_they_expire() {
        let dir = tempfile::tempdir().unwrap();
        let book = TokenBook::new(&dir.path().join("tokens.json"));
        let unknown = |result| matches!(result, Err(PkiError::Token(TokenError::Unknown)));
        assert!(unknown(book.check(&[0; SECRET_BYTES])));
        let (secret, _) = book.issue(Duration::from_secs(60), 1).unwrap();
        let (dead, _) = book.issue(Duration::ZERO, 1).unwrap();
        assert!(book.check(&secret).is_ok());
        assert!(matches!(
            book.check(&dead),
            Err(PkiError::Token(TokenError::Expired))
        ));
        assert!(unknown(book.check(&secret[..15])));
        assert!(unknown(book.check(b"")));
        let stored = std::fs::read_to_string(dir.path().join("tokens.json")).unwrap();
        assert!(
            !stored.contains(&to_hex(&secret)),
            "the secret itself must not be stored"
        );
        book.issue(Duration::from_secs(60), 1).unwrap();
        assert!(unknown(book.check(&dead)), "expired entries are forgotten");
    }

    #[test]
    fn a_token_works_for_as_many_machines_as_were_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let book = TokenBook::new(&dir.path().join("tokens.json"));
        let (secret, expires_s) = book.issue(Duration::from_secs(60), 2).unwrap();
        let uses = || book.list().unwrap().first().and_then(|entry| entry.uses);
        assert_eq!(book.list().unwrap()[0].expires_s, expires_s);
        for left in [Some(1), None] {
            book.check(&secret).unwrap();
            book.spend(&secret).unwrap();
            assert_eq!(uses(), left);
        }
        let used = |result| matches!(result, Err(PkiError::Token(TokenError::Used)));
        assert!(used(book.check(&secret)) && used(book.spend(&secret)));
    }

    #[test]
    fn a_withdrawn_token_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let book = TokenBook::new(&dir.path().join("tokens.json"));
        let (secret, _) = book.issue(Duration::from_secs(60), 1).unwrap();
        let id = book.list().unwrap()[0].id.clone();
        assert!(!to_hex(&secret).contains(&id) && id.len() == ID_DIGITS);
        assert!(!book.withdraw("0").unwrap() && book.check(&secret).is_ok());
        assert!(book.withdraw(&id).unwrap() && book.list().unwrap().is_empty());
        assert!(matches!(
            book.check(&secret),
            Err(PkiError::Token(TokenError::Unknown))
        ));
    }

    #[test]
    fn tokens_of_earlier_versions_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.json");
        let hash = blake3::hash(&[3; SECRET_BYTES]).to_hex();
        let old = format!(r#"[{{"hash":"{hash}","expires_s":{}}}]"#, u64::MAX);
        std::fs::write(&path, old).unwrap();
        let book = TokenBook::new(&path);
        book.spend(&[3; SECRET_BYTES]).unwrap();
        book.spend(&[3; SECRET_BYTES]).unwrap();
        assert_eq!(book.list().unwrap()[0].uses, None);
    }

    proptest! {
        #[test]
        fn any_text_is_an_error_and_never_a_panic(text: String, bytes: Vec<u8>) {
            let _ = parse(&text);
            let _ = parse(&format!("{PREFIX}{text}"));
            let _ = parse(&format!("{PREFIX}{}", to_hex(&bytes)));
            let _ = Token::from_bytes(&bytes);
        }
    }
}
