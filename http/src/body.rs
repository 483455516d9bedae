//! Strict JSON bodies: what is not exactly the object that is expected is refused, with every fault named.

use std::{borrow::Cow, time::Duration};

use actix_web::{HttpRequest, http::header, web};
use futures::StreamExt;
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::problem::{Fault, Kind, Problem};

/// How long a body may take to arrive.
const BODY_WAIT: Duration = Duration::from_secs(5);

/// Most bytes of a body.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimit(pub usize);

/// Reads a JSON body. Refuses other media types, encodings, bytes past the limit, and a body that does not arrive.
pub async fn read_body(request: &HttpRequest, mut payload: web::Payload, limit: BodyLimit) -> Result<Vec<u8>, Problem> {
    let text = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or("?"));
    if !text(header::CONTENT_TYPE).is_some_and(is_json) {
        return Err((&Kind::UNSUPPORTED_MEDIA_TYPE).into());
    }
    if text(header::CONTENT_ENCODING).is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return Err((&Kind::UNSUPPORTED_MEDIA_TYPE).into());
    }
    let collect = async {
        let mut body = Vec::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|_| Problem::new(&Kind::INVALID_BODY, "The body broke off."))?;
            if body.len() + chunk.len() > limit.0 {
                return Err((&Kind::BODY_TOO_LARGE).into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    };
    tokio::time::timeout(BODY_WAIT, collect).await.unwrap_or_else(|_| Err((&Kind::BODY_TIMEOUT).into()))
}

/// Fails if a body comes where none is expected.
pub async fn refuse_body(mut payload: web::Payload) -> Result<(), Problem> {
    let first =
        tokio::time::timeout(BODY_WAIT, payload.next()).await.map_err(|_| Problem::from(&Kind::BODY_TIMEOUT))?;
    match first {
        Some(Ok(chunk)) if chunk.is_empty() => Ok(()),
        Some(_) => Err(Problem::new(&Kind::INVALID_BODY, "This request takes no body.")),
        None => Ok(()),
    }
}

fn is_json(content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let is_json = parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"));
    is_json
        && parts
            .all(|parameter| parameter.is_empty() || parameter.replace('"', "").eq_ignore_ascii_case("charset=utf-8"))
}

/// The members of one JSON object, taken out one by one; what is left at the end is unknown.
///
/// Faults are collected in two heaps, as their statuses differ: those of form (400) and those of value (422).
#[derive(Debug)]
pub struct Fields<'a> {
    pointer: String,
    members: Vec<Member<'a>>,
    form: Vec<Fault>,
    value: Vec<Fault>,
}

/// A member's value, as far as its JSON type goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A string.
    Text(Cow<'a, str>),
    /// An integer without fraction or exponent; none if it does not fit.
    Integer(Option<i64>),
}

impl<'a> Fields<'a> {
    /// The object that is the whole body.
    pub fn parse(body: &'a [u8]) -> Result<Self, Problem> {
        let text =
            std::str::from_utf8(body).map_err(|_| Problem::new(&Kind::INVALID_BODY, "The body is not UTF-8."))?;
        Self::parse_at(text, String::new())
    }

    /// An object inside a body, at `pointer`.
    pub fn parse_at(text: &'a str, pointer: String) -> Result<Self, Problem> {
        let members = serde_json::from_str::<Members<'a>>(text).map_err(|e| {
            // serde's words can repeat the input; only its class is told.
            let detail = match e.classify() {
                serde_json::error::Category::Data if e.to_string().starts_with(REPEATED) => "A field is repeated.",
                serde_json::error::Category::Data if e.to_string().starts_with(TOO_MANY) => "It has too many fields.",
                serde_json::error::Category::Data => "A JSON object is expected.",
                _ => "The body is not JSON.",
            };
            Problem::new(&Kind::INVALID_BODY, detail).with_errors(vec![Fault::field(pointer.clone(), detail)])
        })?;
        Ok(Self { pointer, members: members.0, form: Vec::new(), value: Vec::new() })
    }

    /// A member that must be there.
    pub fn required(&mut self, name: &str) -> Option<&'a str> {
        let found = self.optional(name);
        if found.is_none() {
            self.form_fault(name, "is missing");
        }
        found
    }

    /// A member that may be left out. Its raw JSON text.
    pub fn optional(&mut self, name: &str) -> Option<&'a str> {
        let index = self.members.iter().position(|(known, _)| known == name)?;
        Some(self.members.swap_remove(index).1.get())
    }

    /// A string or an integer. None, and a fault, if it is neither.
    pub fn text_or_integer(&mut self, name: &str, raw: &'a str) -> Option<Found<'a>> {
        match raw.as_bytes().first() {
            Some(b'"') => self.text(name, raw).map(Found::Text),
            Some(b'-' | b'0'..=b'9') if !raw.contains(['.', 'e', 'E']) => Some(Found::Integer(raw.parse().ok())),
            _ => {
                self.form_fault(name, "must be a string or an integer");
                None
            }
        }
    }

    /// A string without NUL. None, and a fault, if it is not.
    pub fn text(&mut self, name: &str, raw: &'a str) -> Option<Cow<'a, str>> {
        match serde_json::from_str::<Text<'a>>(raw) {
            Ok(Text(text)) if !text.contains('\0') => Some(text),
            Ok(_) => {
                self.form_fault(name, "must not hold U+0000");
                None
            }
            Err(_) => {
                self.form_fault(name, "must be a string of Unicode characters");
                None
            }
        }
    }

    /// `true` or `false`. None, and a fault, if it is neither.
    pub fn boolean(&mut self, name: &str, raw: &str) -> Option<bool> {
        match raw {
            "true" => Some(true),
            "false" => Some(false),
            _ => {
                self.form_fault(name, "must be true or false");
                None
            }
        }
    }

    /// An array's elements, as raw JSON. None, and a fault, if it is not one.
    pub fn array(&mut self, name: &str, raw: &'a str) -> Option<Vec<&'a str>> {
        match serde_json::from_str::<Vec<&'a RawValue>>(raw) {
            Ok(elements) => Some(elements.into_iter().map(RawValue::get).collect()),
            Err(_) => {
                self.form_fault(name, "must be an array");
                None
            }
        }
    }

    /// Notes that a member is missing or of the wrong JSON type.
    pub fn form_fault(&mut self, name: &str, detail: &str) {
        self.form.push(Fault::field(format!("{}/{name}", self.pointer), detail));
    }

    /// Notes that a member's value is out of range.
    pub fn value_fault(&mut self, name: &str, detail: &str) {
        self.value.push(Fault::field(format!("{}/{name}", self.pointer), detail));
    }

    /// Fails with every fault noted, and for every member that nobody asked for.
    pub fn finish(mut self) -> Result<(), Problem> {
        // An unknown name is the sender's text: it is counted, not repeated.
        for _ in &self.members {
            self.form.push(Fault::field(self.pointer.clone(), "holds an unknown field"));
        }
        if !self.form.is_empty() {
            self.form.append(&mut self.value);
            return Err(Problem::from(&Kind::INVALID_BODY).with_errors(self.form));
        }
        if !self.value.is_empty() {
            return Err(Problem::from(&Kind::INVALID_VALUE).with_errors(self.value));
        }
        Ok(())
    }
}

const REPEATED: &str = "a field is repeated";
const TOO_MANY: &str = "too many fields";

/// A name and its raw value.
type Member<'a> = (Cow<'a, str>, &'a RawValue);

/// Most members of an object that is read: more than any here has, so that looking for a repeated name stays short.
const MEMBERS_MAX: usize = 64;

/// An object's members; a repeated name is an error, an array is not an object.
struct Members<'a>(Vec<Member<'a>>);

/// A string as it stands in the body, where it holds no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Vec<Member<'de>>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members: Vec<Member<'de>> = Vec::with_capacity(8);
                while let Some((Text(name), value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    if members.iter().any(|(known, _)| *known == name) {
                        return Err(A::Error::custom(REPEATED));
                    }
                    if members.len() == MEMBERS_MAX {
                        return Err(A::Error::custom(TOO_MANY));
                    }
                    members.push((name, value));
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Object).map(Members)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever comes as a body is an object or a refusal with 400, never a panic.
        #[test]
        fn any_bytes_are_an_object_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in "[\\[\\]{}:,\"a-z0-9\\\\ue+.-]{0,200}") {
            for body in [bytes.as_slice(), text.as_bytes()] {
                match Fields::parse(body) {
                    Ok(mut fields) => {
                        prop_assert!(serde_json::from_slice::<serde_json::Value>(body).is_ok_and(|value| value.is_object()));
                        if let Some(raw) = fields.optional("a") {
                            let _any = (fields.text("a", raw), fields.text_or_integer("a", raw), fields.boolean("a", raw), fields.array("a", raw).is_some());
                        }
                        let _refused = fields.finish();
                    }
                    Err(problem) => prop_assert_eq!(problem.status(), 400),
                }
            }
        }
    }
}
