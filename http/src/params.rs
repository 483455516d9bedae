//! Path and query parameters, taken one by one with every fault named.

use std::str::FromStr;

use actix_web::HttpRequest;
use likewise_schema::{Content, Invalid};

use crate::problem::{Fault, Kind, Problem};

/// The parameters of a request.
#[derive(Debug)]
pub struct Params<'a> {
    request: &'a HttpRequest,
    query: Vec<(String, String)>,
    faults: Vec<Fault>,
}

impl<'a> Params<'a> {
    /// Of the request's path and query.
    pub fn of(request: &'a HttpRequest) -> Self {
        let query = form_urlencoded::parse(request.query_string().as_bytes()).into_owned().collect();
        Self { request, query, faults: Vec::new() }
    }

    /// A segment of the path.
    pub fn path<T: FromStr<Err = Invalid>>(&mut self, name: &str) -> Option<T> {
        let text = self.request.match_info().get(name).unwrap_or_default();
        self.parse(name, text)
    }

    /// The content that the segments `contentType` and `contentId` name.
    pub fn content(&mut self) -> Option<Content> {
        let (content_type, content_id) = (self.path("contentType"), self.path("contentId"));
        Some(Content { content_type: content_type?, content_id: content_id? })
    }

    /// A query parameter that may be left out, given at most once.
    pub fn optional<T: FromStr<Err = Invalid>>(&mut self, name: &str) -> Option<T> {
        let mut values = self.take(name);
        if values.len() > 1 {
            self.fault(name, "may be given once");
        }
        values.pop().and_then(|text| self.parse(name, &text))
    }

    /// A query parameter that may be repeated.
    pub fn all<T: FromStr<Err = Invalid>>(&mut self, name: &str) -> Vec<T> {
        self.take(name).iter().filter_map(|text| self.parse(name, text)).collect()
    }

    /// A number of a range, `default` if it is left out.
    pub fn number(&mut self, name: &str, range: std::ops::RangeInclusive<usize>, default: usize) -> usize {
        let mut values = self.take(name);
        let Some(text) = values.pop() else { return default };
        let digits_only = text.bytes().all(|b| b.is_ascii_digit());
        match text.parse().ok().filter(|number| digits_only && range.contains(number)) {
            Some(number) if values.is_empty() => number,
            _ => {
                let (low, high) = range.into_inner();
                self.fault(name, &format!("must be one number between {low} and {high}"));
                default
            }
        }
    }

    /// A query parameter as it is, given at most once.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let mut values = self.take(name);
        if values.len() > 1 {
            self.fault(name, "may be given once");
        }
        values.pop()
    }

    fn take(&mut self, name: &str) -> Vec<String> {
        self.query.extract_if(.., |(key, _)| key == name).map(|(_, value)| value).collect()
    }

    fn parse<T: FromStr<Err = Invalid>>(&mut self, name: &str, text: &str) -> Option<T> {
        text.parse().map_err(|invalid: Invalid| self.fault(name, invalid.detail())).ok()
    }

    /// Notes a fault of a parameter.
    pub fn fault(&mut self, name: &str, detail: &str) {
        self.faults.push(Fault::parameter(name, detail));
    }

    /// Fails with every fault noted, and for every query parameter that nobody asked for.
    pub fn finish(mut self) -> Result<(), Problem> {
        for _ in &self.query {
            self.faults.push(Fault::parameter("?", "there is no such parameter here"));
        }
        if self.faults.is_empty() {
            return Ok(());
        }
        Err(Problem::from(&Kind::INVALID_PARAMETER).with_errors(self.faults))
    }
}
