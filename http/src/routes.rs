//! The table of routes: what is served is what the table says, and what OpenAPI is compared with.

use std::{collections::BTreeMap, sync::Arc};

use actix_web::{
    Handler, HttpResponse, Resource, Responder,
    http::{Method, header},
    web,
};

use crate::problem::{KINDS, Kind, Problem};

/// Routes by path. Roles add theirs; one path may have methods of several roles.
#[derive(Default)]
pub struct Routes {
    table: BTreeMap<&'static str, Vec<(Method, actix_web::Route)>>,
    services: Vec<Configure>,
}

/// The path of the table that a request was matched with.
#[derive(Clone, Copy)]
pub(crate) struct RoutePath(pub(crate) &'static str);

type Configure = Box<dyn FnOnce(&mut web::ServiceConfig)>;

impl Routes {
    /// Adds a handler for a method of a path, which may hold `{name}` segments.
    pub fn add<F, A>(&mut self, method: Method, path: &'static str, handler: F)
    where
        F: Handler<A>,
        A: actix_web::FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        let route = web::method(method.clone()).to(handler);
        self.table.entry(path).or_default().push((method, route));
    }

    /// Adds a service that brings its own routes, such as a user interface.
    pub fn add_service(&mut self, configure: impl FnOnce(&mut web::ServiceConfig) + 'static) {
        self.services.push(Box::new(configure));
    }

    /// Every (path, method), sorted; those of services apart.
    pub fn table(&self) -> Vec<(&'static str, String)> {
        let mut table: Vec<_> = self
            .table
            .iter()
            .flat_map(|(path, routes)| routes.iter().map(|(method, _)| (*path, method.to_string())))
            .collect();
        table.sort();
        table
    }

    /// Registers the routes; any other method of a path is a 405 that names those it takes.
    ///
    /// Paths without parameters come first: they are looked at in order, and cost less than a pattern.
    pub fn configure(self, config: &mut web::ServiceConfig) {
        let (patterns, fixed): (Vec<_>, Vec<_>) = self.table.into_iter().partition(|(path, _)| path.contains('{'));
        for (path, routes) in fixed.into_iter().chain(patterns) {
            let mut allowed: Vec<String> = routes.iter().map(|(method, _)| method.to_string()).collect();
            allowed.sort();
            let allow = allowed.join(", ");
            let refuse = move || {
                let problem = Problem::from(&Kind::METHOD_NOT_ALLOWED).with_header(header::ALLOW, allow.clone());
                async move { Err::<HttpResponse, _>(problem) }
            };
            let resource = routes.into_iter().fold(Resource::new(path), |resource, (_, route)| resource.route(route));
            config.service(resource.app_data(RoutePath(path)).default_service(web::to(refuse)));
        }
        for service in self.services {
            service(config);
        }
    }
}

/// Answers whether this process is fit to serve; a missing part is named.
pub type Health = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Alive: answers as long as the process does.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200, description = "Alive")))]
async fn livez() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain").body("ok\n")
}

/// Ready: every part that is needed is there.
#[utoipa::path(get, path = "/readyz", tag = "health",
    responses((status = 200, description = "Ready"), (status = 503, description = "Names the part that is missing")))]
async fn readyz(health: Health) -> Result<HttpResponse, Problem> {
    match health() {
        Ok(()) => Ok(HttpResponse::Ok().content_type("text/plain").body("ok\n")),
        Err(missing) => Err(Problem::new(&Kind::UNAVAILABLE, missing)),
    }
}

/// What a problem type means.
#[utoipa::path(get, path = "/problems/{slug}", tag = "health", params(("slug" = String, Path)),
    responses((status = 200, description = "What it means and what to do"), (status = 404, description = "No such type"),
              (status = 400, description = "The path holds what no path here has")))]
async fn problem_page(slug: web::Path<String>) -> Result<HttpResponse, Problem> {
    let kind = KINDS.iter().find(|kind| kind.slug == slug.as_str()).ok_or(Problem::from(&Kind::NOT_FOUND))?;
    let Kind { status, title, help, .. } = kind;
    let page = format!("# {title}\n\nHTTP status {status}.\n\n{help}\n");
    Ok(HttpResponse::Ok().content_type("text/markdown; charset=utf-8").body(page))
}

/// Adds `/livez`, `/readyz`, and a page for each type of problem.
pub fn health_routes(routes: &mut Routes, health: &Health) {
    let health = Arc::clone(health);
    routes.add(Method::GET, "/livez", livez);
    routes.add(Method::GET, "/readyz", move || readyz(Arc::clone(&health)));
    routes.add(Method::GET, "/problems/{slug}", problem_page);
}

/// Their part of the OpenAPI document.
#[derive(utoipa::OpenApi)]
#[openapi(paths(livez, readyz, problem_page))]
pub struct HealthApi;
