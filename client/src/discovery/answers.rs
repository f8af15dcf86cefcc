//! What is read of the Kubernetes API's answers.
//!
//! An answer is bounded by its bytes, but three bytes, `{},`, are enough for an item that takes
//! hundreds of bytes as a complete EndpointSlice. So these types have only the fields that are
//! used, a list within an item keeps a bounded number of entries, and the items of an answer
//! are handed on one by one.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::MAX_ENDPOINTS;

/// The most bytes of what tells pods apart: a namespace and a name take 317.
const MAX_POD: usize = 320;

/// The most ports of a slice that are read: the API allows no more.
const MAX_PORTS: usize = 100;

/// A name of an object or a port: a DNS subdomain is the longest.
pub type Name = Text<253>;

/// A resource version or a continue token. The API server's own have a few hundred bytes at most.
pub type Token = Text<4096>;

/// A text that is kept, of at most `MAX` bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// The text itself.
    pub fn into_string(self) -> String {
        self.0
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> TryFrom<String> for Text<MAX> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.len() <= MAX {
            Ok(Self(text))
        } else {
            Err(format!("a text of {} bytes, expected at most {MAX}", text.len()))
        }
    }
}

/// The first `MAX` entries of a list; `null` is a list without any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtMost<const MAX: usize, T>(pub Vec<T>);

impl<const MAX: usize, T> Default for AtMost<MAX, T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, const MAX: usize, T: Deserialize<'de>> Deserialize<'de> for AtMost<MAX, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut kept = Vec::new();
        let keep = |entry| {
            if kept.len() < MAX {
                kept.push(entry);
            }
        };
        Each(keep, PhantomData).deserialize(deserializer)?;
        Ok(Self(kept))
    }
}

/// Hands the entries of a list on one by one.
struct Each<T, F>(F, PhantomData<T>);

impl<'de, T: Deserialize<'de>, F: FnMut(T)> DeserializeSeed<'de> for Each<T, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for Each<T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element()? {
            (self.0)(entry);
        }
        Ok(())
    }
}

/// An EndpointSlice.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Slice {
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default)]
    pub address_type: AddressType,
    #[serde(default)]
    pub ports: AtMost<MAX_PORTS, Port>,
    /// One more than are used, so that it is noticed if there are too many. The API allows
    /// 1,000 in a slice.
    #[serde(default)]
    pub endpoints: AtMost<{ MAX_ENDPOINTS + 1 }, Endpoint>,
}

/// Which object of its kind, and which version of it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    #[serde(default)]
    pub name: Option<Name>,
    #[serde(default)]
    pub resource_version: Option<Token>,
}

/// What the addresses of a slice are.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub enum AddressType {
    IPv4,
    IPv6,
    /// The address type FQDN is deprecated; no controller generates it.
    #[default]
    #[serde(other)]
    Other,
}

/// A port that all endpoints of a slice have.
#[derive(Debug, Deserialize)]
pub struct Port {
    pub name: Option<Name>,
    pub port: Option<i32>,
    #[serde(default)]
    pub protocol: Option<Protocol>,
}

/// The protocol of a port.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub enum Protocol {
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(other)]
    Other,
}

/// An endpoint of a slice.
#[derive(Debug, Deserialize)]
#[serde(from = "WholeEndpoint")]
pub struct Endpoint {
    /// The first address. All of an endpoint's addresses are the same pod: the API asks for
    /// the first.
    pub ip: Option<IpAddr>,
    pub tier: Tier,
    /// The same text for each endpoint of one pod, which has one for each family of addresses.
    pub pod: Option<String>,
}

/// How much is to be expected of an endpoint. The best comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Ready and not terminating.
    Ready,
    /// It is terminating and serves until then.
    Serving,
    /// It may not answer.
    Doubtful,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WholeEndpoint {
    #[serde(default)]
    addresses: AtMost<1, Address>,
    conditions: Option<Conditions>,
    target_ref: Option<Target>,
}

/// An address, or none if the text is something else.
#[derive(Deserialize)]
#[serde(from = "String")]
struct Address(Option<IpAddr>);

impl From<String> for Address {
    fn from(text: String) -> Self {
        Self(text.parse().ok())
    }
}

#[derive(Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

impl Conditions {
    /// A condition that is not set means ready, serving and not terminating, by the API's own
    /// words. An endpoint that is terminating may still be called ready, if its Service publishes
    /// addresses that are not: it is on its way out all the same.
    fn tier(&self) -> Tier {
        let terminating = self.terminating.unwrap_or(false);
        match (self.ready.unwrap_or(true), self.serving.unwrap_or(true)) {
            (true, _) if !terminating => Tier::Ready,
            (_, true) if terminating => Tier::Serving,
            _ => Tier::Doubtful,
        }
    }
}

/// The object behind an endpoint.
#[derive(Deserialize)]
struct Target {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
}

impl Target {
    fn pod(self) -> Option<String> {
        let name = (self.kind.as_deref() == Some("Pod"))
            .then(|| Some(format!("{}/{}", self.namespace?, self.name?)))
            .flatten();
        let pod = self.uid.filter(|uid| !uid.is_empty()).or(name);
        pod.filter(|pod| pod.len() <= MAX_POD)
    }
}

impl From<WholeEndpoint> for Endpoint {
    fn from(endpoint: WholeEndpoint) -> Self {
        Self {
            ip: endpoint.addresses.0.first().and_then(|address| address.0),
            tier: endpoint.conditions.unwrap_or_default().tier(),
            pod: endpoint.target_ref.and_then(Target::pod),
        }
    }
}

/// What the API says when it refuses.
#[derive(Debug, Default, Deserialize)]
pub struct Status {
    #[serde(default)]
    pub code: u16,
    #[serde(default)]
    pub message: String,
}

/// Where a list stands after one of its pages.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageMetadata {
    pub resource_version: Token,
    pub r#continue: Option<Token>,
}

/// Reads one page of a list. Each slice is handed on before the next one is read.
pub fn read_page(json: &[u8], each: impl FnMut(Slice)) -> serde_json::Result<PageMetadata> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let metadata = deserializer.deserialize_map(Page(each))?;
    deserializer.end()?;
    Ok(metadata)
}

struct Page<F>(F);

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum PageField {
    Metadata,
    Items,
    #[serde(other)]
    Other,
}

impl<'de, F: FnMut(Slice)> Visitor<'de> for Page<F> {
    type Value = PageMetadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of EndpointSlices")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut page: A) -> Result<PageMetadata, A::Error> {
        let mut metadata = None;
        let mut listed = false;
        while let Some(field) = page.next_key()? {
            match field {
                PageField::Metadata => metadata = Some(page.next_value()?),
                PageField::Items => {
                    page.next_value_seed(Each(&mut self.0, PhantomData))?;
                    listed = true;
                }
                PageField::Other => {
                    page.next_value::<IgnoredAny>()?;
                }
            }
        }
        if !listed {
            return Err(A::Error::missing_field("items"));
        }
        metadata.ok_or_else(|| A::Error::missing_field("metadata"))
    }
}

/// What a line of a watch says.
#[derive(Debug)]
pub enum Event {
    /// A slice is new, or has changed.
    Put(Slice),
    /// A slice is gone.
    Remove(Metadata),
    /// Nothing has changed up to this version.
    Bookmark(Metadata),
    /// The watch has failed.
    Error(Status),
}

#[derive(Deserialize)]
struct Kind {
    r#type: EventType,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum EventType {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

#[derive(Deserialize)]
struct Of<T> {
    object: T,
}

#[derive(Deserialize)]
struct WithMetadata {
    metadata: Metadata,
}

/// Reads a line of a watch. It is read twice, because its type may stand behind its object,
/// and serde would keep all of an object whose type it does not know yet.
pub fn read_event(json: &[u8]) -> serde_json::Result<Event> {
    let Kind { r#type } = serde_json::from_slice(json)?;
    let metadata = || serde_json::from_slice(json).map(|of: Of<WithMetadata>| of.object.metadata);
    Ok(match r#type {
        EventType::Added | EventType::Modified => {
            Event::Put(serde_json::from_slice::<Of<Slice>>(json)?.object)
        }
        EventType::Deleted => Event::Remove(metadata()?),
        EventType::Bookmark => Event::Bookmark(metadata()?),
        EventType::Error => Event::Error(serde_json::from_slice::<Of<Status>>(json)?.object),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of a page's slices, and the token for the next page.
    fn page(json: &str) -> serde_json::Result<(Vec<String>, PageMetadata)> {
        let mut names = Vec::new();
        let each = |slice: Slice| names.push(slice.metadata.name.unwrap_or_default().into_string());
        let metadata = read_page(json.as_bytes(), each)?;
        Ok((names, metadata))
    }

    #[test]
    fn a_page_is_read_in_any_order_and_must_be_complete() {
        let metadata = r#""metadata":{"resourceVersion":"7","continue":"next","x":1}"#;
        let items = r#""items":[{"metadata":{"name":"a"}},{}]"#;
        for json in
            [format!("{{{metadata},{items}}}"), format!("{{{items},\"x\":{{}},{metadata}}}")]
        {
            let (names, metadata) = page(&json).unwrap();
            assert_eq!(names, ["a", ""]);
            assert_eq!(metadata.resource_version.as_str(), "7");
            assert_eq!(metadata.r#continue.unwrap().as_str(), "next");
        }
        for json in [
            format!("{{{metadata}}}"),
            format!("{{{items}}}"),
            format!("{{{metadata},{items}"),
            format!("{{{metadata},{items}}}<html>"),
            "<html>".to_owned(),
            "[]".to_owned(),
        ] {
            page(&json).unwrap_err();
        }
    }

    #[test]
    fn an_event_is_read_in_any_order() {
        for json in [
            r#"{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"7"}}}"#,
            r#"{"object":{"metadata":{"name":"a","resourceVersion":"7"}},"type":"MODIFIED"}"#,
        ] {
            let Event::Put(slice) = read_event(json.as_bytes()).unwrap() else { panic!("{json}") };
            assert_eq!(slice.metadata.name.unwrap().as_str(), "a");
            assert_eq!(slice.metadata.resource_version.unwrap().as_str(), "7");
        }
        let error = br#"{"object":{"code":410,"details":{"causes":[{},{}]}},"type":"ERROR"}"#;
        let Event::Error(status) = read_event(error).unwrap() else { panic!("another event") };
        assert_eq!((status.code, &*status.message), (410, ""));
        for json in ["", "<html>", "{}", r#"{"type":"ADDED"}"#, r#"{"type":"NEW","object":{}}"#] {
            read_event(json.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn lists_and_texts_of_a_slice_are_bounded() {
        let many = |entry: &str| vec![entry; 100_000].join(",");
        let json = format!(r#"{{"ports":[{}],"endpoints":[{}]}}"#, many("{}"), many("{}"));
        let slice: Slice = serde_json::from_str(&json).unwrap();
        assert_eq!(slice.ports.0.len(), MAX_PORTS);
        assert_eq!(slice.endpoints.0.len(), MAX_ENDPOINTS + 1);
        for (name, holds) in [("a".repeat(253), true), ("a".repeat(254), false)] {
            let json = format!(r#"{{"metadata":{{"name":"{name}"}}}}"#);
            assert_eq!(serde_json::from_str::<Slice>(&json).is_ok(), holds);
        }
    }
}
