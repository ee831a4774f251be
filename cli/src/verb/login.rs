//! `culvert login`, `logout`, `whoami`.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use http::Method;
use serde_json::{Value, json};

use crate::api::Api;
use crate::args::login::Login as Args;
use crate::args::{Format, Global};
use crate::error::{CliError, Result};
use crate::login::{self, Login, Shown};
use crate::output::{self, Column};

/// Longest password, in bytes.
const PASSWORD_BYTES_MAX: u64 = 4_096;

const COLUMNS: &[Column] = &[
    ("WHO", "subject"),
    ("TIER", "tier"),
    ("EMAIL", "email"),
    ("GROUPS", "groups"),
    ("AUDIT", "auditScope"),
    ("UNTIL", "expiresAt"),
];

/// Signs in and keeps the session, or an API token that was tried.
pub async fn login(global: &Global, args: &Args) -> Result<()> {
    let file = place(global)?;
    let api = match global.api.as_deref() {
        Some(api) if !api.starts_with("unix:") => api.to_owned(),
        _ => {
            let fix = "give --api https://HUB; the Unix socket asks for no login";
            return Err(CliError::usage(
                "nobody said where to log in",
                "no --api",
                fix,
            ));
        }
    };
    let mut kept = Login {
        api,
        api_ca: absolute(global.api_ca.as_deref())?,
        shown: Shown::Bearer(String::new()),
    };
    kept.shown = match (&args.email, &args.token_file) {
        (Some(email), _) => session(&kept, email, &password(args)?).await?,
        (None, Some(token)) => Shown::Bearer(secret(token, "the API token")?),
        // clap wants one of them.
        (None, None) => return Err(CliError::usage("nobody said who", "", "give --email")),
    };
    if global.dry_run {
        eprintln!("dry run: nothing is kept");
        return Ok(());
    }
    let who = Api::of_login(kept.clone(), None)?
        .get("/api/v1/auth/whoami")
        .await?;
    kept.keep(&file)?;
    eprintln!("kept in {} (0600) until culvert logout", file.display());
    output::show(global.output, &who, COLUMNS);
    Ok(())
}

/// The break-glass administrator's session.
async fn session(kept: &Login, email: &str, password: &str) -> Result<Shown> {
    let api = Api::at(&kept.api, kept.api_ca.as_deref())?;
    let config = api.get("/api/config").await?;
    let origin = config["frontend_url"].as_str().and_then(origin);
    let origin = origin.ok_or_else(|| {
        let fix = "start control with --public-url";
        let seen = "no frontend_url in /api/config";
        CliError::new(
            "no_sign_in",
            "nobody can sign in here",
            seen,
            "control",
            fix,
        )
    })?;
    let body = json!({"email": email, "password": password});
    let (said, cookie) = api.sign_in(body).await?;
    if let Some(warning) = said["warning"].as_str() {
        eprintln!("warning: {}", warning.escape_debug());
    }
    Ok(Shown::Session { cookie, origin })
}

/// Scheme and authority, as a browser would say.
fn origin(url: &str) -> Option<String> {
    let url = url::Url::parse(url).ok()?;
    Some(url.origin().ascii_serialization())
}

fn password(args: &Args) -> Result<String> {
    if let Some(file) = &args.password_file {
        return secret(file, "the password");
    }
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        let fix = "give --password-file FILE, or pipe it: culvert login ... < FILE";
        let seen = "standard input is a terminal, which would show it";
        return Err(CliError::usage("no password", seen, fix));
    }
    read(&mut stdin, "the password", "standard input")
}

fn secret(file: &Path, what: &str) -> Result<String> {
    let at = file.display().to_string();
    match std::fs::File::open(file) {
        Ok(mut open) => read(&mut open, what, &at),
        Err(why) => {
            let fix = "give a file that you can read";
            let what = format!("{what} cannot be read");
            Err(CliError::usage(&what, format!("{at}: {why}"), fix))
        }
    }
}

fn read(from: &mut impl std::io::Read, what: &str, at: &str) -> Result<String> {
    let mut text = String::new();
    let read = from.take(PASSWORD_BYTES_MAX).read_to_string(&mut text);
    let text = text.trim_end_matches(['\r', '\n']);
    match read {
        Ok(_) if !text.is_empty() => Ok(text.to_owned()),
        Ok(_) => {
            let what = format!("{what} is empty");
            Err(CliError::usage(&what, at, "put it there, on one line"))
        }
        Err(why) => {
            let what = format!("{what} cannot be read");
            let seen = format!("{at}: {why}");
            Err(CliError::usage(&what, seen, "give it as text"))
        }
    }
}

/// Ends the session at control, and forgets the login here.
pub async fn logout(global: &Global) -> Result<()> {
    let file = place(global)?;
    let Some(kept) = Login::read(&file)? else {
        eprintln!("nobody is logged in: there is no {}", file.display());
        return Ok(());
    };
    let is_session = matches!(kept.shown, Shown::Session { .. });
    if global.dry_run {
        eprintln!("dry run: {} would go", file.display());
        return Ok(());
    }
    let ended = match is_session {
        true => {
            let api = Api::of_login(kept, None)?;
            api.change(Method::POST, "/api/auth/logout", None).await
        }
        false => {
            eprintln!("the token stays good: culvert token api revoke ends it");
            Ok(None)
        }
    };
    // Forgotten here whatever control says.
    login::forget(&file)?;
    ended?;
    eprintln!("{} is gone", file.display());
    Ok(())
}

/// Who control takes the caller for.
pub async fn whoami(global: &Global, api: &Api) -> Result<()> {
    let who: Value = api.get("/api/v1/auth/whoami").await?;
    if global.output == Format::Table {
        eprintln!("at {}", api.place());
    }
    output::show(global.output, &who, COLUMNS);
    Ok(())
}

fn place(global: &Global) -> Result<PathBuf> {
    global.login.file().ok_or_else(|| {
        let fix = "give --login-file FILE, or set HOME";
        CliError::usage("nobody said where a login is kept", "no HOME", fix)
    })
}

/// A login is used from any directory.
fn absolute(path: Option<&Path>) -> Result<Option<PathBuf>> {
    let absolute = path.map(std::path::absolute).transpose();
    absolute.map_err(|why| CliError::usage("no such path", why, "give a whole path"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_says() {
        let origin = |url| origin(url).unwrap_or_default();
        assert_eq!(origin("https://hub.test/x"), "https://hub.test");
        assert_eq!(origin("https://hub.test:8443"), "https://hub.test:8443");
        assert_eq!(origin("nonsense"), "");
    }

    #[test]
    fn a_secret_is_one_line() {
        let read = |text: &str| read(&mut text.as_bytes(), "the password", "here");
        assert_eq!(read("a b\r\n").ok().as_deref(), Some("a b"));
        assert!(read("\n").is_err());
    }
}
