//! The demo page, in the binary.

use actix_web::{HttpResponse, http::Method};
use likewise_http::Routes;

const HTML: &str = include_str!("../../web/index.html");
const CSS: &str = include_str!("../../web/demo.css");
const JS: &str = include_str!("../../web/demo.js");
/// Nothing but this server's own files and answers.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(crate) fn routes(routes: &mut Routes) {
    routes.add(Method::GET, "/", async || file("text/html; charset=utf-8", HTML));
    routes.add(Method::GET, "/demo.css", async || file("text/css; charset=utf-8", CSS));
    routes.add(Method::GET, "/demo.js", async || file("text/javascript; charset=utf-8", JS));
}

fn file(content_type: &'static str, text: &'static str) -> HttpResponse {
    HttpResponse::Ok()
        .content_type(content_type)
        .insert_header(("Content-Security-Policy", POLICY))
        .insert_header(("X-Content-Type-Options", "nosniff"))
        .insert_header(("Cache-Control", "no-cache"))
        .body(text)
}
