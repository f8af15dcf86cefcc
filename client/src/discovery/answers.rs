//! The parts of the Kubernetes API's answers that are read.
//!
//! Limiting the bytes of an answer is not enough: three bytes, `{},`, are an item that takes
//! hundreds of bytes as a complete EndpointSlice. So these types have only the fields that are
//! used, lists within an item keep a limited number of entries, and the items of an answer are
//! passed on one by one.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::MAX_ENDPOINTS;

/// The longest text that identifies a pod. A namespace and a name take 317 bytes.
const MAX_POD: usize = 320;

/// The most ports of a slice that are read. The API allows no more.
const MAX_PORTS: usize = 100;

/// The name of an object or a port. A DNS subdomain is the longest.
pub type Name = Text<253>;

/// A resource version or a continue token. Those of the API server have a few hundred bytes at
/// most.
pub type Token = Text<4096>;

/// A text of at most `MAX` bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// The text as a string.
    pub fn into_string(self) -> String {
        self.0
    }

    /// The text as a string slice.
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
            Err(format!("a text of {} bytes; the limit is {MAX}", text.len()))
        }
    }
}

/// The first `MAX` entries of a list. `null` counts as an empty list.
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

/// Passes the entries of a list on one by one.
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
    /// One more than are used, so that a surplus is noticed. The API allows 1,000 endpoints in a
    /// slice.
    #[serde(default)]
    pub endpoints: AtMost<{ MAX_ENDPOINTS + 1 }, Endpoint>,
}

/// The name and the version of an object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    #[serde(default)]
    pub name: Option<Name>,
    #[serde(default)]
    pub resource_version: Option<Token>,
}

/// The kind of addresses in a slice.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub enum AddressType {
    IPv4,
    IPv6,
    /// FQDN is deprecated, and no controller generates it.
    #[default]
    #[serde(other)]
    Other,
}

/// A port of all endpoints in a slice.
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

/// An endpoint in a slice.
#[derive(Debug, Deserialize)]
#[serde(from = "WholeEndpoint")]
pub struct Endpoint {
    /// The first address. All addresses of an endpoint are the same pod, and the API's
    /// documentation says to use the first.
    pub ip: Option<IpAddr>,
    pub tier: Tier,
    /// Identifies the pod. A dual-stack pod has an endpoint in each address family, with the same
    /// text.
    pub pod: Option<String>,
}

/// How likely an endpoint is to answer. The best tier comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Ready and not terminating.
    Ready,
    /// Terminating, but still serving.
    Serving,
    /// Neither ready nor serving; it may not answer.
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

/// An IP address, or `None` if the text is not one.
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
    /// The API documents that unset conditions mean ready, serving and not terminating. A
    /// terminating endpoint may still be called ready if its Service publishes addresses that are
    /// not ready. It is about to leave all the same.
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

/// The API's answer when it refuses a request.
#[derive(Debug, Default, Deserialize)]
pub struct Status {
    #[serde(default)]
    pub code: u16,
    #[serde(default)]
    pub message: String,
}

/// The metadata of one page of a list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageMetadata {
    pub resource_version: Token,
    pub r#continue: Option<Token>,
}

/// Reads one page of a list. Each slice is passed on before the next one is read.
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

/// One line of a watch.
#[derive(Debug)]
pub enum Event {
    /// A slice is new or has changed.
    Put(Slice),
    /// A slice is gone.
    Remove(Metadata),
    /// Nothing else has changed up to this version.
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

/// Reads one line of a watch. It parses the line twice because the type may come after the object,
/// and serde would buffer all of an object whose type it does not know yet.
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

    /// The names of the slices in a page, and its metadata.
    fn page(json: &str) -> serde_json::Result<(Vec<String>, PageMetadata)> {
        let mut names = Vec::new();
        let each = |slice: Slice| names.push(slice.metadata.name.unwrap_or_default().into_string());
        let metadata = read_page(json.as_bytes(), each)?;
        Ok((names, metadata))
    }

    #[test]
    fn a_page_may_have_its_fields_in_any_order_but_must_be_complete() {
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
    fn an_event_may_have_its_fields_in_any_order() {
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
    fn lists_and_texts_in_a_slice_are_limited() {
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
