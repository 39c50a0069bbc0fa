//! `GET /v1/kv/{collection}`: a page of records in key order.
//!
//! `prefix`, `start` and `end` are always percent-encoded bytes; `encoding` applies to the answer only.
//! Without it, records whose key and value are UTF-8 are text, and others base64, which their field
//! `encoding` says; so one binary record costs no page. With `encoding=utf8` it does, with a typed error.
//!
//! With `snapshot=true` the page begins a scan that sees each shard at one moment; its cursors say so.
//!
//! The cursor is opaque to clients: the last key of the page in URL-safe base64, or after `~` the key from
//! which the next page starts. Bounds between which no key lies are no error: the page is empty.

use axum::{
    Json,
    extract::Request,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use flotilla_api::{Encoding, KEY_BYTES_MAX, SCAN_ITEMS_DEFAULT, SCAN_ITEMS_MAX, ScanItem, ScanPage};
use tokio::time::Instant;

use super::{
    App,
    client::ClientConnection,
    conditional::EntityTag,
    deadline,
    problem::Refusal,
    raw::{Query, invalid},
};
use crate::{Consistency, Found, Page, Scan, ScanSnapshot, SnapshotId, StoreError};

/// Bytes of values in a page, when some of them are large.
const CONTENT_BYTES_MAX: u64 = 4 << 20;

const PARAMETER_NAMES: &[&str] =
    &["prefix", "start", "end", "limit", "cursor", "snapshot", "encoding", "values", "consistency", "token"];

pub(super) async fn page(app: App, collection: String, request: Request) -> Result<Response, Refusal> {
    let Parameters { scan, encoding, consistency } = Parameters::parse(request.uri().query())?;
    let values = scan.values;
    let deadline = deadline(request.headers())?;
    let client = ClientConnection::of(&request)?;
    // Room for the values, until the bytes of the answer are counted.
    let _room = if values { Some(client.expect_answer(deadline).await?) } else { None };
    let page = app.store.scan(&collection, scan, consistency, deadline.into_std()).await?;
    let page = if values { contents(&app, &collection, page, deadline).await? } else { page };
    client.answered(page.records.iter().map(|record| record.key.len() + record.value.stored_bytes()).sum());
    Ok(Json(to_json(page, encoding, values)?).into_response())
}

/// Reads the large values of a page, up to its bytes. One that does not fit ends the page; as the first with bytes it
/// stays a reference.
async fn contents(app: &App, collection: &str, page: Page, deadline: Instant) -> Result<Page, Refusal> {
    let mut left = Left::default();
    let mut records = Vec::with_capacity(page.records.len());
    for record in page.records {
        let from = record.key.clone();
        let ends = |records| Ok(Page { records, cursor: Some(from), snapshot: page.snapshot });
        match left.take(&record) {
            Fit::Whole => {}
            Fit::Reference => {
                records.push(record);
                continue;
            }
            Fit::NextPage => return ends(records),
        }
        if record.value.inline().is_some() {
            records.push(record);
            continue;
        }
        match app.store.with_content(collection, record, page.snapshot.is_some(), deadline.into_std()).await {
            Ok(record) => records.extend(record),
            // Whoever waits for a page gets what there is.
            Err(StoreError::DeadlineExceeded { .. } | StoreError::Busy { .. }) if !records.is_empty() => {
                return ends(records);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Page { records, ..page })
}

/// The bytes that a page may still have.
struct Left {
    bytes: u64,
    is_full: bool,
}

impl Default for Left {
    fn default() -> Self {
        Self { bytes: CONTENT_BYTES_MAX, is_full: true }
    }
}

/// How much of a record a page has.
#[derive(Debug, PartialEq, Eq)]
enum Fit {
    Whole,
    /// No page could have its value.
    Reference,
    NextPage,
}

impl Left {
    fn take(&mut self, record: &Found) -> Fit {
        let is_large = record.value.inline().is_none();
        match self.bytes.checked_sub(record.value_bytes) {
            Some(left) => self.bytes = left,
            // Values in records are bounded by the store.
            None if !is_large => self.bytes = 0,
            None if self.is_full => return Fit::Reference,
            None => return Fit::NextPage,
        }
        self.is_full &= record.value_bytes == 0;
        Fit::Whole
    }
}

/// The parameters of a scan.
#[derive(Debug)]
pub(super) struct Parameters {
    pub(super) scan: Scan,
    /// Absent: what fits each record.
    encoding: Option<Encoding>,
    consistency: Consistency,
}

impl Parameters {
    pub(super) fn parse(query: Option<&str>) -> Result<Self, Refusal> {
        let mut query = Query::parse(query, PARAMETER_NAMES)?;
        let items_max = query.number("limit")?.unwrap_or(SCAN_ITEMS_DEFAULT);
        if !(1..=SCAN_ITEMS_MAX).contains(&items_max) {
            return Err(invalid(format!("`limit` must be 1 to {SCAN_ITEMS_MAX}")));
        }
        let encoding = match query.text("encoding")?.as_deref() {
            None => None,
            Some("utf8") => Some(Encoding::Utf8),
            Some("base64") => Some(Encoding::Base64),
            Some(_) => return Err(invalid("`encoding` must be `utf8` or `base64`")),
        };
        let mut bound = |name: &str| {
            let bytes = query.bytes(name).unwrap_or_default();
            if bytes.len() > KEY_BYTES_MAX {
                return Err(invalid(format!("`{name}` may have at most {KEY_BYTES_MAX} bytes")));
            }
            Ok(Bytes::from(bytes))
        };
        let (prefix, start, end) = (bound("prefix")?, bound("start")?, bound("end")?);
        let cursor =
            query.text("cursor")?.filter(|text| !text.is_empty()).map(|text| parse_cursor(&text)).transpose()?;
        let begins = query.flag("snapshot")?.unwrap_or(false).then_some(ScanSnapshot::Begin);
        let (from, snapshot) = match cursor {
            Some((from, Some(id))) => (Some(from), Some(ScanSnapshot::At(id))),
            Some((from, None)) => (Some(from), begins),
            None => (None, begins),
        };
        let values = query.flag("values")?.unwrap_or(true);
        let consistency = query.consistency()?;
        let scan = Scan { prefix, start, end, from, items_max, values, snapshot };
        Ok(Self { scan, encoding, consistency })
    }
}

/// Starts a cursor that is the key from which a page starts. Others are the key after which it does.
const FROM: char = '~';

/// Separates the snapshot of a scan, in front, from the rest of its cursor.
const OF_SNAPSHOT: char = '.';

fn cursor_text(from: &[u8], snapshot: Option<SnapshotId>) -> String {
    let text = match from {
        [key @ .., 0] => URL_SAFE_NO_PAD.encode(key),
        from => format!("{FROM}{}", URL_SAFE_NO_PAD.encode(from)),
    };
    match snapshot {
        Some(SnapshotId(id)) => format!("{}{OF_SNAPSHOT}{text}", URL_SAFE_NO_PAD.encode(id.to_be_bytes())),
        None => text,
    }
}

fn parse_cursor(text: &str) -> Result<(Bytes, Option<SnapshotId>), Refusal> {
    let not_one = || invalid("`cursor` is not the cursor of a page");
    let (snapshot, text) = match text.split_once(OF_SNAPSHOT) {
        Some((id, text)) => {
            let id = URL_SAFE_NO_PAD.decode(id).ok().and_then(|id| id.try_into().ok());
            (Some(SnapshotId(u128::from_be_bytes(id.ok_or_else(not_one)?))), text)
        }
        None => (None, text),
    };
    let (text, is_after) = text.strip_prefix(FROM).map_or((text, true), |text| (text, false));
    let key = URL_SAFE_NO_PAD.decode(text).ok().filter(|key| key.len() <= KEY_BYTES_MAX);
    let mut key = key.ok_or_else(not_one)?;
    if is_after {
        key.push(0);
    }
    Ok((key.into(), snapshot))
}

fn to_json(page: Page, encoding: Option<Encoding>, values: bool) -> Result<ScanPage, Refusal> {
    let mut items = Vec::with_capacity(page.records.len());
    for record in page.records {
        let is_given = values && record.value.inline().is_some();
        let value = record.value.inline().filter(|_| values).map_or(&[][..], |value| value);
        let (encoding, says) = match encoding {
            Some(encoding) => (encoding, Encoding::default()),
            None => [Encoding::for_all(&[&record.key, value]); 2].into(),
        };
        items.push(ScanItem {
            key: encoding.encode(&record.key)?,
            value: if is_given { Some(encoding.encode(value)?) } else { None },
            etag: (values && !is_given).then(|| EntityTag::of(&record.value).text()),
            encoding: says,
            version: record.version,
            value_bytes: record.value_bytes,
            expires_at_ms: record.expires_at_ms,
        });
    }
    Ok(ScanPage { items, cursor: page.cursor.map(|from| cursor_text(&from, page.snapshot)) })
}

#[cfg(test)]
mod tests {
    use flotilla_api::ProblemType;
    use flotilla_kv::{Content, Value};
    use flotilla_types::{NodeId, ShardId, Timestamp};
    use flotilla_values::{Chunking, cut};
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn bounds_are_decoded_as_bytes_and_the_cursor_as_base64() {
        let cursor = URL_SAFE_NO_PAD.encode(b"\xff\0");
        let query = format!("prefix=%ff&start=a%2Fb&limit=10000&values=false&encoding=base64&cursor={cursor}");
        let Parameters { scan, encoding, .. } = Parameters::parse(Some(&query)).expect("a scan");
        assert_eq!((&scan.prefix[..], &scan.start[..], scan.values), (&b"\xff"[..], &b"a/b"[..], false));
        assert_eq!(scan.from.as_deref(), Some(&b"\xff\0\0"[..]));
        assert_eq!(encoding, Some(Encoding::Base64));
        assert_eq!(Parameters::parse(None).expect("a scan").scan.items_max, SCAN_ITEMS_DEFAULT);
    }

    #[test]
    fn limits_encodings_and_cursors_out_of_range_are_refused() {
        for bad in [
            "limit=0",
            "limit=10001",
            "limit=x",
            "encoding=hex",
            "cursor=%21",
            "cursor=~%21",
            "cursor=~~",
            "cursor=AA.AA",
            "cursor=.AA",
            "snapshot=x",
        ] {
            assert!(Parameters::parse(Some(bad)).is_err_and(|r| r.kind() == ProblemType::InvalidArgument), "{bad}");
        }
    }

    /// Bytes of a bound: short ones, the ends, and ones at and beyond the limit.
    fn bound() -> impl Strategy<Value = Vec<u8>> {
        let long = prop_oneof![Just(KEY_BYTES_MAX - 1), Just(KEY_BYTES_MAX), Just(KEY_BYTES_MAX + 1)];
        prop_oneof![
            4 => vec(any::<u8>(), 0..4),
            1 => (long, any::<u8>()).prop_map(|(len, byte)| std::vec![byte; len]),
        ]
    }

    proptest! {
        /// Bounds in any order are parsed as they are; only their length and the limit decide.
        #[test]
        fn bounds_in_any_order_are_accepted_up_to_the_length_of_a_key(
            bounds in [bound(), bound(), bound(), bound()],
            limit in prop_oneof![Just(0), 1..=SCAN_ITEMS_MAX, Just(SCAN_ITEMS_MAX + 1), Just(usize::MAX)],
        ) {
            let encode = |bytes: &[u8]| bytes.iter().map(|byte| format!("%{byte:02x}")).collect::<String>();
            let [prefix, start, end, after] = &bounds;
            let query = format!(
                "prefix={}&start={}&end={}&limit={limit}&cursor={}",
                encode(prefix),
                encode(start),
                encode(end),
                URL_SAFE_NO_PAD.encode(after),
            );
            let is_valid =
                bounds.iter().all(|bound| bound.len() <= KEY_BYTES_MAX) && (1..=SCAN_ITEMS_MAX).contains(&limit);
            match Parameters::parse(Some(&query)) {
                Ok(Parameters { scan, .. }) => {
                    prop_assert!(is_valid);
                    let from = Some([&after[..], &[0]].concat()).filter(|_| !after.is_empty());
                    prop_assert_eq!((&scan.prefix[..], &scan.start[..], &scan.end[..]), (&prefix[..], &start[..], &end[..]));
                    prop_assert_eq!((scan.from.as_deref(), scan.items_max), (from.as_deref(), limit));
                }
                Err(refusal) => prop_assert!(!is_valid && refusal.kind() == ProblemType::InvalidArgument),
            }
        }

        #[test]
        fn any_text_as_a_cursor_is_a_position_or_refused(text in "[A-Za-z0-9_=+/-]{0,40}") {
            let query = format!("cursor={}", text.replace('+', "%2b").replace('=', "%3d"));
            match Parameters::parse(Some(&query)) {
                Ok(Parameters { scan, .. }) => prop_assert_eq!(scan.from.is_none(), text.is_empty()),
                Err(refusal) => prop_assert_eq!(refusal.kind(), ProblemType::InvalidArgument),
            }
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_need_base64() {
        let page = || Page {
            records: vec![Found {
                key: Bytes::from_static(b"k"),
                value: Bytes::from_static(b"\xff").into(),
                version: Timestamp(1),
                expires_at_ms: None,
                value_bytes: 1,
                served_by: NodeId(1),
                shard: ShardId(1),
            }],
            cursor: Some(Bytes::from_static(b"k")),
            snapshot: None,
        };
        let refusal = to_json(page(), Some(Encoding::Utf8), true).expect_err("not text").0;
        assert_eq!(refusal.kind, ProblemType::NotUtf8);
        assert!(refusal.detail.contains("encoding=base64"));
        let json = to_json(page(), Some(Encoding::Base64), true).expect("a page");
        assert_eq!(json.items[0].value.as_deref(), Some("/w=="));
        assert!(to_json(page(), Some(Encoding::Utf8), false).expect("keys only").items[0].value.is_none());
    }

    #[test]
    fn a_binary_record_costs_no_page() {
        let record = |key, value| Found {
            key: Bytes::from_static(key),
            value: Bytes::from_static(value).into(),
            version: Timestamp(1),
            expires_at_ms: None,
            value_bytes: 1,
            served_by: NodeId(1),
            shard: ShardId(1),
        };
        let records = vec![record(b"k", b"text"), record(b"l", b"\xff"), record(b"\xfe", b"")];
        let page = to_json(Page { records, ..Page::default() }, None, true).expect("a page");
        let items: Vec<_> =
            page.items.iter().map(|item| (&item.key[..], item.value.as_deref(), item.encoding)).collect();
        let (text, base64) = (Encoding::Utf8, Encoding::Base64);
        assert_eq!(items, [("k", Some("text"), text), ("bA==", Some("/w=="), base64), ("/g==", Some(""), base64)]);
        let said = serde_json::to_string(&page.items).expect("JSON");
        assert_eq!(said.matches(r#""encoding":"base64""#).count(), 2, "text needs no word: {said}");
    }

    #[test]
    fn a_large_value_that_does_not_fit_ends_the_page_and_as_its_first_stays_a_reference() {
        let record = |bytes: u64| {
            let content = Content::Large(cut(b"x", Chunking::default()).expect("a short value").value);
            Found {
                key: Bytes::from_static(b"k"),
                value: Value { content, media_type: Bytes::new() },
                version: Timestamp(1),
                expires_at_ms: None,
                value_bytes: bytes,
                served_by: NodeId(1),
                shard: ShardId(1),
            }
        };
        let mut left = Left::default();
        let fits = [CONTENT_BYTES_MAX + 1, 1, CONTENT_BYTES_MAX - 1, 0, 1].map(|bytes| left.take(&record(bytes)));
        assert_eq!(fits, [Fit::Reference, Fit::Whole, Fit::Whole, Fit::Whole, Fit::NextPage]);
        let page = Page { records: vec![record(CONTENT_BYTES_MAX + 1)], ..Page::default() };
        let json = to_json(page, None, true).expect("a page");
        let tag = json.items[0].etag.as_deref().expect("a tag");
        assert!(json.items[0].value.is_none() && tag.starts_with('"'), "{tag}");
    }

    #[test]
    fn both_forms_of_a_cursor_are_read_back() {
        for from in [&b"k\0"[..], b"k", b"\0", b"", b"\xff\xff", b"a\0\0"] {
            for snapshot in [None, Some(SnapshotId(0)), Some(SnapshotId(u128::MAX - 7))] {
                let text = cursor_text(from, snapshot);
                let (parsed, of) = parse_cursor(&text).expect("a cursor");
                assert_eq!((&parsed[..], of), (from, snapshot), "{text}");
            }
        }
        assert_eq!(cursor_text(b"k\0", None), URL_SAFE_NO_PAD.encode(b"k"), "as nodes of earlier releases write it");
    }
}
