//! Keyset cursors: opaque, bound to one list, and signed, so that nobody makes one up.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use likewise_schema::{Content, ContentId, ContentType, Timestamp, UserId};
use likewise_storage::records::{Liked, Liker};
use sha2::Sha256;

/// Signs cursors. Replicas share it; at least 32 bytes.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

/// The secret is too short to sign with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooShort;

impl Secret {
    /// Fails below 32 bytes.
    pub fn new(bytes: Vec<u8>) -> Result<Self, TooShort> {
        if bytes.len() >= 32 { Ok(Self(bytes)) } else { Err(TooShort) }
    }

    fn mac(&self, list: &str, key: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        mac.update(list.as_bytes());
        mac.update(&[0, FORMAT]);
        mac.update(key);
        Some(mac)
    }

    /// `key` of the list named `list`, signed.
    fn seal(&self, list: &str, key: &[u8]) -> String {
        let mut bytes = vec![FORMAT];
        bytes.extend_from_slice(key);
        if let Some(mac) = self.mac(list, key) {
            bytes.extend_from_slice(&mac.finalize().into_bytes()[..TAG]);
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The key in a cursor of the list named `list`; none if it is not one.
    fn open(&self, list: &str, cursor: &str) -> Option<Vec<u8>> {
        if cursor.len() > 200 {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (format, rest) = bytes.split_first()?;
        let (key, tag) = rest.split_at_checked(rest.len().checked_sub(TAG)?)?;
        (*format == FORMAT).then_some(())?;
        self.mac(list, key)?.verify_truncated_left(tag).ok()?;
        Some(key.to_vec())
    }

    pub(crate) fn seal_liker(&self, content: &Content, last: &Liker) -> String {
        let mut key = last.liked_at.millis().to_be_bytes().to_vec();
        key.extend_from_slice(&last.user.get().to_be_bytes());
        self.seal(&likers_list(content), &key)
    }

    pub(crate) fn open_liker(&self, content: &Content, cursor: &str) -> Option<Liker> {
        let key = self.open(&likers_list(content), cursor)?;
        let (numbers, []) = key.as_chunks::<8>() else { return None };
        let [liked_at, user] = numbers else { return None };
        Some(Liker {
            liked_at: Timestamp::from_millis(i64::from_be_bytes(*liked_at)).ok()?,
            user: UserId::new(i64::from_be_bytes(*user)).ok()?,
        })
    }

    pub(crate) fn seal_liked(&self, user: UserId, filter: Option<ContentType>, last: &Liked) -> String {
        let mut key = last.liked_at.millis().to_be_bytes().to_vec();
        key.extend_from_slice(&last.content.content_id.get().to_be_bytes());
        key.extend_from_slice(last.content.content_type.as_str().as_bytes());
        self.seal(&likes_list(user, filter), &key)
    }

    pub(crate) fn open_liked(&self, user: UserId, filter: Option<ContentType>, cursor: &str) -> Option<Liked> {
        let key = self.open(&likes_list(user, filter), cursor)?;
        let (liked_at, rest) = key.split_first_chunk::<8>()?;
        let (id, kind) = rest.split_first_chunk::<8>()?;
        Some(Liked {
            liked_at: Timestamp::from_millis(i64::from_be_bytes(*liked_at)).ok()?,
            content: Content {
                content_type: std::str::from_utf8(kind).ok()?.parse().ok()?,
                content_id: ContentId::new(i64::from_be_bytes(*id)).ok()?,
            },
        })
    }
}

const FORMAT: u8 = 1;
/// Bytes of the signature that a cursor carries.
const TAG: usize = 16;

fn likers_list(content: &Content) -> String {
    format!("likers/{content}")
}

fn likes_list(user: UserId, filter: Option<ContentType>) -> String {
    format!("likes/{user}/{}", filter.map_or(String::new(), |kind| kind.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(byte: u8) -> Secret {
        Secret::new(vec![byte; 32]).unwrap()
    }

    #[test]
    fn a_cursor_opens_for_its_list_and_secret_only() {
        let content: Content = "post:42".parse().unwrap();
        let last =
            Liker { user: UserId::new(7).unwrap(), liked_at: Timestamp::from_millis(1_700_000_000_000).unwrap() };
        let cursor = secret(1).seal_liker(&content, &last);
        assert_eq!(secret(1).open_liker(&content, &cursor), Some(last));
        assert_eq!(secret(2).open_liker(&content, &cursor), None, "another secret");
        assert_eq!(secret(1).open_liker(&"post:43".parse().unwrap(), &cursor), None, "another list");
        let user = UserId::new(7).unwrap();
        let liked = Liked { content, liked_at: last.liked_at };
        let cursor = secret(1).seal_liked(user, None, &liked);
        assert_eq!(secret(1).open_liked(user, None, &cursor), Some(liked));
        assert_eq!(secret(1).open_liked(user, Some(content.content_type), &cursor), None, "another filter");
        for end in 0..cursor.len() {
            assert_eq!(secret(1).open_liked(user, None, &cursor[..end]), None, "cut at {end}");
        }
        assert!(Secret::new(vec![1; 31]).is_err());
    }

    proptest::proptest! {
        /// Whatever is sent for a cursor opens nothing, and panics nowhere.
        #[test]
        fn no_text_is_a_cursor(text in "\\PC{0,250}", coded in "[A-Za-z0-9_-]{0,200}") {
            let content: Content = "post:42".parse().unwrap();
            let user = UserId::new(7).unwrap();
            for text in [text, coded] {
                proptest::prop_assert_eq!(secret(1).open_liker(&content, &text), None);
                proptest::prop_assert_eq!(secret(1).open_liked(user, None, &text), None);
            }
        }
    }
}
