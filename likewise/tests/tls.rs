//! The APIs over TLS.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use likewise_testkit::{
    Settings,
    certificates::{Authority, Flaw},
    wait_until,
};

#[test]
fn the_apis_speak_tls_and_take_a_new_certificate_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let files = authority.issue("server", Flaw::None);
    let settings = Settings::new(env!("CARGO_BIN_EXE_likewise"), dir.path()).tls(&authority.certificate(), &files);
    let service = settings.start();
    service.wait_ready();
    let answer = service.send("PUT", "/v1/contents/post/1/like?viewer=7", &[("Prefer", "wait=5")], None);
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.header("strict-transport-security"), "max-age=31536000");
    assert_eq!(service.get_admin("/metrics").status, 200);

    // Whoever does not speak TLS is not spoken to.
    let mut plain = TcpStream::connect(&service.address).unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _cut_off = plain.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "{answer:?}");

    // Another client each time, which looks at the certificate anew.
    let accepts = || settings.client(&service.address).try_send("GET", "/livez", &[], None).is_ok();
    assert!(accepts());
    for flaw in [Flaw::OtherHost, Flaw::Expired, Flaw::SelfSigned] {
        authority.issue("server", flaw);
        let took = wait_until("the certificate to be taken", Duration::from_secs(30), || !accepts());
        println!("{flaw:?}: shown, and refused by a client, after {took:?}");
        authority.issue("server", Flaw::None);
        wait_until("the right one to be taken", Duration::from_secs(30), accepts);
    }
    std::fs::write(&files.key, "nonsense").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert!(accepts(), "the last valid one is shown");
}

#[test]
fn a_certificate_without_its_key_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (one, other) = (authority.issue("one", Flaw::None), authority.issue("other", Flaw::None));
    let open = Settings::new(env!("CARGO_BIN_EXE_likewise"), dir.path());
    let of = |certificate: &std::path::Path, key: &std::path::Path| {
        let settings = open.clone().arg(&format!("--tls-cert-file={}", certificate.display()));
        settings.arg(&format!("--tls-key-file={}", key.display())).output(&[
            "serve",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
        ])
    };
    for (certificate, key, sentence) in [
        (&one.certificate, &other.key, "do not belong together"),
        (&one.key, &one.key, "certificate chain in PEM"),
        (&one.certificate, &one.certificate, "private key in PEM"),
    ] {
        let output = of(certificate, key);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(sentence), "{sentence}: {said}");
    }
}
