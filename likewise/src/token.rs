//! `likewise token`: a token for trying things out.

use std::{fs, time::Duration};

use clap::Args;
use likewise_http::{TokenKeys, sign_token};
use likewise_schema::UserId;

use crate::{Failure, config::Settings};

#[derive(Args)]
pub(crate) struct Options {
    /// The user's number.
    #[arg(long, required_unless_present = "admin")]
    user: Option<String>,
    /// For the admin port in place of the APIs.
    #[arg(long, conflicts_with = "user")]
    admin: bool,
    /// How long it is valid.
    #[arg(long = "for", value_name = "TIME", default_value = "1h")]
    life: humantime::Duration,
}

pub(crate) fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let tokens = settings.security.tokens.as_ref();
    let Some((TokenKeys::Secret(file), tokens)) = tokens.map(|tokens| (&tokens.keys, tokens)) else {
        return Err("a token is signed with --auth-secret-file; where tokens come from elsewhere, get one there".into());
    };
    let secret = fs::read(file).map_err(|e| format!("auth_secret_file cannot be read ({e})"))?;
    let (rules, subject) = match &options.user {
        Some(user) => {
            let user: UserId = user.parse().map_err(|_| "--user must be a number from 1 to 2^63-1")?;
            (&tokens.rules, user.to_string())
        }
        None => (&tokens.admin_rules, "admin".to_owned()),
    };
    let token = sign_token(&secret, rules, &subject, Duration::from(options.life));
    println!("{}", token.map_err(|what| format!("auth_secret_file {what}"))?);
    Ok(())
}
