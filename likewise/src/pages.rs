//! The files in the binary that browsers load: the like button for anybody's page, the demo and the operator's console.

use std::{io::Write, sync::LazyLock};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{
        Method,
        header::{self, AcceptEncoding, ETag, Encoding, EntityTag, Header},
    },
    web::{self, Bytes},
};
use flate2::{Compression, write::GzEncoder};
use likewise_http::{Kind, Problem, Routes, client_has};
use likewise_schema::hex;
use sha2::{Digest, Sha256};

/// Nothing but this server's own files and answers, and nothing that could become a script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";
const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
/// How many digits of its hash the button's versioned name has.
const VERSION_DIGITS: usize = 16;

/// A file as it is sent.
struct File {
    content_type: &'static str,
    text: &'static str,
    gzipped: Bytes,
    hash: String,
}

impl File {
    fn new(content_type: &'static str, text: &'static str) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        // A vector takes all that is written to it.
        let gzipped = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish()).unwrap_or_default();
        Self {
            content_type,
            text,
            gzipped: gzipped.into(),
            hash: hex(&Sha256::digest(text.as_bytes()))[..VERSION_DIGITS].to_owned(),
        }
    }

    /// The answer to `request`; `lifetime` is its `Cache-Control`.
    fn answer(&self, request: &HttpRequest, lifetime: &'static str) -> HttpResponse {
        let is_known = client_has(request, &self.hash);
        let mut response = if is_known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
        response
            .content_type(self.content_type)
            .insert_header(ETag(EntityTag::new_weak(self.hash.clone())))
            .insert_header((header::CACHE_CONTROL, lifetime))
            .insert_header((header::VARY, "Accept-Encoding"));
        let takes_gzip = AcceptEncoding::parse(request).is_ok_and(|accepted| {
            accepted.negotiate([Encoding::gzip(), Encoding::identity()].iter()) == Some(Encoding::gzip())
        });
        if is_known {
            response.finish()
        } else if takes_gzip {
            response.insert_header((header::CONTENT_ENCODING, "gzip")).body(self.gzipped.clone())
        } else {
            response.body(self.text)
        }
    }

    /// The answer to a page of this server.
    fn page(&self, request: &HttpRequest) -> HttpResponse {
        let mut response = self.answer(request, "no-cache");
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, header::HeaderValue::from_static(POLICY));
        response
    }

    /// The answer to any page that embeds it.
    fn embedded(&self, request: &HttpRequest, lifetime: &'static str) -> HttpResponse {
        let mut response = self.answer(request, lifetime);
        let headers = response.headers_mut();
        // Modules are loaded by CORS; this one is the same for everybody.
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, header::HeaderValue::from_static("*"));
        headers.insert(
            header::HeaderName::from_static("cross-origin-resource-policy"),
            header::HeaderValue::from_static("cross-origin"),
        );
        response
    }
}

/// Adds the pages given by path, type and file.
macro_rules! pages {
    ($routes:expr, $($path:literal $kind:ident $file:literal)*) => {$(
        $routes.add(Method::GET, $path, async |request: HttpRequest| {
            static FILE: LazyLock<File> = LazyLock::new(|| File::new($kind, include_str!(concat!("../../web/", $file))));
            FILE.page(&request)
        });
    )*};
}

static BUTTON: LazyLock<File> = LazyLock::new(|| File::new(JS, include_str!("../../web/dist/like-button.js")));

/// The paths of what is served beside the API.
#[cfg(test)]
pub(crate) const PATHS: [&str; 7] =
    ["/", "/demo.css", "/demo.js", "/demo/state", "/demo/busy", "/like-button.js", "/like-button-{version}.js"];

/// The like button: under a name that stays, and under one that changes with it and may be kept for ever.
pub(crate) fn button_routes(routes: &mut Routes) {
    routes.add(Method::GET, "/like-button.js", async |request: HttpRequest| {
        let mut response = BUTTON.embedded(&request, "public, max-age=300");
        if let Ok(name) = format!("/like-button-{}.js", BUTTON.hash).parse() {
            response.headers_mut().insert(header::CONTENT_LOCATION, name);
        }
        response
    });
    routes.add(Method::GET, "/like-button-{version}.js", async |request: HttpRequest, version: web::Path<String>| {
        match *version == BUTTON.hash {
            true => Ok(BUTTON.embedded(&request, "public, max-age=31536000, immutable")),
            false => Err(Problem::from(&Kind::NOT_FOUND)),
        }
    });
}

/// The demo's files.
pub(crate) fn demo_routes(routes: &mut Routes) {
    pages!(routes,
        "/" HTML "demo/index.html"
        "/demo.css" CSS "demo/demo.css"
        "/demo.js" JS "demo/demo.js"
    );
}

/// The console's files, which hold no secret.
pub(crate) const CONSOLE_PATHS: [&str; 3] = ["/", "/console.css", "/console.js"];

/// The console's files.
pub(crate) fn console_routes(routes: &mut Routes) {
    pages!(routes,
        "/" HTML "console/index.html"
        "/console.css" CSS "console/console.css"
        "/console.js" JS "console/console.js"
    );
}
