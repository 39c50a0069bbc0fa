//! All routes, in one table against which a test checks the OpenAPI description.

use std::collections::HashMap;

use axum::{
    Router,
    http::{HeaderValue, header},
    middleware,
    response::{IntoResponse as _, Response},
    routing::{MethodRouter, any, delete, get, post, put},
};
use flotilla_api::ProblemType;

use super::{App, audit, batch, cluster, events, guard, health, objects, page, problem::Refusal, records, rpc};
use crate::Right;

/// One entry of the route table.
struct Route {
    /// The path as the router matches it.
    path: &'static str,
    /// The same in the OpenAPI description: paths with their methods.
    #[cfg_attr(not(test), expect(dead_code, reason = "the description is checked by a test"))]
    described: &'static [(&'static str, &'static [&'static str])],
    rights: Rights,
    handler: MethodRouter<App>,
}

/// The rights that the requests of one route need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rights {
    /// For `GET` and `HEAD`.
    pub(super) reads: Right,
    /// For all other methods.
    pub(super) changes: Right,
}

impl Rights {
    const fn new(reads: Right, changes: Right) -> Self {
        Self { reads, changes }
    }

    /// For routes that change nothing, and for paths that are no route.
    pub(super) const INSPECT: Self = Self::new(Right::Inspect, Right::Inspect);
    const PROBE: Self = Self::new(Right::Probe, Right::Probe);
    const OPERATE: Self = Self::new(Right::Inspect, Right::Operate);
    const ADMINISTER: Self = Self::new(Right::Administer, Right::Administer);
    /// The handlers also check the collection.
    const RECORDS: Self = Self::new(Right::Read, Right::Write);
    /// Those that change no record.
    const READS: Self = Self::new(Right::Read, Right::Read);
}

fn table() -> Vec<Route> {
    let route = |path, described, rights, handler| Route { path, described, rights, handler };
    vec![
        route(
            "/v1/kv/{*rest}",
            &[("/v1/kv/{collection}/{key}", &["get", "head", "put", "delete"]), ("/v1/kv/{collection}", &["get"])],
            Rights::RECORDS,
            any(records::dispatch),
        ),
        route(
            "/v1/kv-objects/{*rest}",
            &[("/v1/kv-objects/{collection}/{key}", &["post"])],
            Rights::READS,
            post(objects::of_record),
        ),
        route(
            "/v1/uploads/{upload}/objects",
            &[("/v1/uploads/{upload}/objects", &["post"])],
            Rights::RECORDS,
            post(objects::upload),
        ),
        route("/v1/batch", &[("/v1/batch", &["post"])], Rights::RECORDS, post(batch::apply)),
        route(
            "/v1/collections",
            &[("/v1/collections", &["get", "post", "delete"])],
            Rights::OPERATE,
            get(cluster::list_collections).post(cluster::create_collection).delete(cluster::drop_collection_by_query),
        ),
        route(
            "/v1/collections/{name}",
            &[("/v1/collections/{name}", &["get", "patch", "delete"])],
            Rights::OPERATE,
            get(cluster::collection).patch(cluster::change_collection).delete(cluster::drop_collection),
        ),
        route("/v1/cluster/status", &[("/v1/cluster/status", &["get"])], Rights::INSPECT, get(cluster::status)),
        route("/v1/cluster/nodes", &[("/v1/cluster/nodes", &["get"])], Rights::INSPECT, get(cluster::nodes)),
        route(
            "/v1/cluster/nodes/{id}",
            &[("/v1/cluster/nodes/{id}", &["delete"])],
            Rights::OPERATE,
            delete(cluster::remove_node),
        ),
        route(
            "/v1/cluster/nodes/{id}/{verb}",
            &[("/v1/cluster/nodes/{id}/{verb}", &["post"])],
            Rights::OPERATE,
            post(cluster::change_node),
        ),
        route("/v1/cluster/shards", &[("/v1/cluster/shards", &["get"])], Rights::INSPECT, get(cluster::shards)),
        route(
            "/v1/cluster/shards/top",
            &[("/v1/cluster/shards/top", &["get"])],
            Rights::INSPECT,
            get(cluster::shard_top),
        ),
        route(
            "/v1/cluster/shards/{id}/explain",
            &[("/v1/cluster/shards/{id}/explain", &["get"])],
            Rights::INSPECT,
            get(cluster::explain),
        ),
        route(
            "/v1/cluster/rebalance",
            &[("/v1/cluster/rebalance", &["post"])],
            Rights::OPERATE,
            post(cluster::rebalance),
        ),
        route(
            "/v1/cluster/decisions",
            &[("/v1/cluster/decisions", &["get"])],
            Rights::INSPECT,
            get(cluster::decisions),
        ),
        route(
            "/v1/cluster/operations",
            &[("/v1/cluster/operations", &["get"])],
            Rights::INSPECT,
            get(cluster::operations),
        ),
        route(
            "/v1/cluster/operations/{id}",
            &[("/v1/cluster/operations/{id}", &["get"])],
            Rights::INSPECT,
            get(cluster::operation),
        ),
        route(
            "/v1/cluster/operations/{id}/{verb}",
            &[("/v1/cluster/operations/{id}/{verb}", &["post"])],
            Rights::OPERATE,
            post(cluster::change_operation),
        ),
        route(
            "/v1/cluster/shards/{id}/move",
            &[("/v1/cluster/shards/{id}/move", &["post"])],
            Rights::OPERATE,
            post(cluster::move_shard),
        ),
        route(
            "/v1/cluster/shards/{id}/split",
            &[("/v1/cluster/shards/{id}/split", &["post"])],
            Rights::OPERATE,
            post(cluster::split_shard),
        ),
        route(
            "/v1/cluster/shards/{id}/merge",
            &[("/v1/cluster/shards/{id}/merge", &["post"])],
            Rights::OPERATE,
            post(cluster::merge_shards),
        ),
        route(
            "/v1/cluster/scrub",
            &[("/v1/cluster/scrub", &["get", "post"])],
            Rights::OPERATE,
            get(cluster::scrub).post(cluster::start_scrub),
        ),
        route(
            "/v1/cluster/consistency",
            &[("/v1/cluster/consistency", &["get"])],
            Rights::INSPECT,
            get(cluster::consistency),
        ),
        route("/v1/cluster/digests", &[("/v1/cluster/digests", &["get"])], Rights::INSPECT, get(cluster::digests)),
        route("/v1/cluster/events", &[("/v1/cluster/events", &["get"])], Rights::INSPECT, get(events::events)),
        route(
            "/v1/cluster/tokens",
            &[("/v1/cluster/tokens", &["get", "post"])],
            Rights::ADMINISTER,
            get(cluster::list_tokens).post(cluster::create_token),
        ),
        route(
            "/v1/cluster/tokens/{id}",
            &[("/v1/cluster/tokens/{id}", &["delete"])],
            Rights::ADMINISTER,
            delete(cluster::revoke_token),
        ),
        route(
            "/v1/cluster/settings",
            &[("/v1/cluster/settings", &["get"])],
            Rights::OPERATE,
            get(cluster::list_settings),
        ),
        route(
            "/v1/cluster/settings/{key}",
            &[("/v1/cluster/settings/{key}", &["put"])],
            Rights::OPERATE,
            put(cluster::put_setting),
        ),
        route(
            "/v1/cluster/upgrade",
            &[("/v1/cluster/upgrade", &["get", "post"])],
            Rights::OPERATE,
            get(cluster::upgrade_status).post(cluster::finish_upgrade),
        ),
        route(
            "/v1/cluster/authority",
            &[("/v1/cluster/authority", &["get"])],
            Rights::INSPECT,
            get(cluster::authority_status),
        ),
        route(
            "/v1/cluster/authority/rotate",
            &[("/v1/cluster/authority/rotate", &["post"])],
            Rights::ADMINISTER,
            post(cluster::rotate_authority),
        ),
        route(
            "/v1/cluster/keys",
            &[("/v1/cluster/keys", &["get", "post"])],
            Rights::ADMINISTER,
            get(cluster::list_keys).post(cluster::create_key),
        ),
        route(
            "/v1/cluster/keys/{id}",
            &[("/v1/cluster/keys/{id}", &["delete"])],
            Rights::ADMINISTER,
            delete(cluster::revoke_key),
        ),
        route("/v1/cluster/audit", &[("/v1/cluster/audit", &["get"])], Rights::ADMINISTER, get(audit::audit)),
        route("/v1/rpc", &[("/v1/rpc", &["post"])], Rights::INSPECT, post(rpc::call)),
        route("/health/live", &[("/health/live", &["get"])], Rights::PROBE, get(health::live)),
        route("/health/drain", &[("/health/drain", &["post"])], Rights::OPERATE, post(health::drain)),
        route("/healthz", &[("/healthz", &["get"])], Rights::PROBE, get(health::healthy)),
        route("/readyz", &[("/readyz", &["get"])], Rights::PROBE, get(health::ready)),
        route("/metrics", &[("/metrics", &["get"])], Rights::INSPECT, get(health::metrics)),
        route("/openapi.json", &[("/openapi.json", &["get"])], Rights::INSPECT, get(page::openapi)),
        route("/", &[("/", &["get"])], Rights::INSPECT, get(page::admin)),
    ]
}

/// The rights that each route needs, by the path as the router matches it.
pub(super) fn rights() -> HashMap<&'static str, Rights> {
    table().into_iter().map(|route| (route.path, route.rights)).collect()
}

/// The router of the whole interface.
pub(super) fn router(app: App) -> Router {
    table()
        .into_iter()
        .fold(Router::new(), |router, route| router.route(route.path, route.handler))
        .fallback(async || Refusal::new(ProblemType::NotFound, "there is no such route; /openapi.json lists them"))
        .method_not_allowed_fallback(async || method_not_allowed("see the header `allow`"))
        .layer(middleware::from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

/// The path exists, but not with this method.
pub(super) fn wrong_method(allowed: &'static str) -> Response {
    let mut response = method_not_allowed(allowed).into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

/// The same where the router adds the header.
fn method_not_allowed(allowed: &str) -> Refusal {
    Refusal::new(ProblemType::MethodNotAllowed, format!("this path allows other methods: {allowed}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn description() -> Value {
        serde_json::from_str(page::OPENAPI).expect("JSON")
    }

    #[test]
    fn the_description_lists_exactly_the_routes() {
        let described: BTreeSet<(String, String)> = description()["paths"]
            .as_object()
            .expect("paths")
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().expect("methods").keys().filter(|name| *name != "parameters");
                methods.map(|method| (path.clone(), method.clone())).collect::<Vec<_>>()
            })
            .collect();
        let routed: BTreeSet<(String, String)> = table()
            .iter()
            .flat_map(|route| route.described)
            .flat_map(|(path, methods)| methods.iter().map(|method| ((*path).to_owned(), (*method).to_owned())))
            .collect();
        assert_eq!(described, routed);
    }

    #[test]
    fn the_description_lists_every_problem_type() {
        let description = description();
        let kinds = description["components"]["schemas"]["Problem"]["properties"]["type"]["enum"].as_array();
        let described: BTreeSet<&str> = kinds.expect("kinds").iter().filter_map(Value::as_str).collect();
        let sent: BTreeSet<&str> = ProblemType::ALL.iter().map(|kind| kind.slug()).collect();
        assert_eq!(described, sent);
    }
}
