//! A browser's part without a browser: curl with a jar of cookies follows redirects, and the
//! provider's own forms are filled.

use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use culvert_perf::testbed::Testbed;

use super::site::{HUB, PROVIDER};

/// Somebody with cookies of their own.
pub struct Walker {
    bed: Rc<Testbed>,
    jar: PathBuf,
}

/// Where a walk ended.
#[derive(Debug)]
pub struct Page {
    pub status: u16,
    pub url: String,
    /// Where it would lead on.
    pub next: String,
    pub body: String,
}

impl Walker {
    pub fn new(bed: &Rc<Testbed>, name: &str) -> Result<Walker> {
        let jar = bed.path(&format!("{name}.jar"));
        std::fs::write(&jar, "")?;
        let bed = bed.clone();
        Ok(Walker { bed, jar })
    }

    /// Somebody with a copy of these cookies.
    pub fn copy(&self, name: &str) -> Result<Walker> {
        let jar = self.bed.path(&format!("{name}.jar"));
        std::fs::copy(&self.jar, &jar)?;
        let bed = self.bed.clone();
        Ok(Walker { bed, jar })
    }

    pub fn jar(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.jar)?)
    }

    /// One request; no redirect is followed.
    pub fn get(&self, url: &str) -> Result<Page> {
        self.curl(&[url])
    }

    /// The same as a browser asks for a page.
    pub fn page(&self, url: &str) -> Result<Page> {
        self.curl(&["-H", "Accept: text/html,*/*", url])
    }

    pub fn post_json(&self, url: &str, body: &str) -> Result<Page> {
        let origin = format!("Origin: {HUB}");
        self.curl(&[
            "-H",
            &origin,
            "-H",
            "Content-Type: application/json",
            "-d",
            body,
            url,
        ])
    }

    /// Signs in as `account`, to its end.
    pub fn sign_in(&self, provider: &str, account: &str, path: &str) -> Result<Page> {
        let form = self.curl(&[
            "-L",
            &format!("{HUB}/api/auth/login?provider={provider}&return={path}"),
        ])?;
        let form = self.fill(&form, account, &["-L"])?;
        self.fill(&form, account, &["-L"])
    }

    /// Signs in as `account`, up to the URL that leads back to the hub.
    pub fn until_callback(&self, provider: &str, account: &str) -> Result<String> {
        let form = self.curl(&["-L", &format!("{HUB}/api/auth/login?provider={provider}")])?;
        let form = self.fill(&form, account, &["-L"])?;
        let mut page = self.fill(&form, account, &[])?;
        while !page.next.starts_with(HUB) {
            ensure!(page.next.starts_with(PROVIDER), "{page:?}");
            page = self.get(&page.next)?;
        }
        Ok(page.next)
    }

    /// Sends the form of the page: the login, or the consent.
    fn fill(&self, page: &Page, account: &str, flags: &[&str]) -> Result<Page> {
        ensure!(
            page.status == 200 && page.url.starts_with(PROVIDER),
            "{page:?}"
        );
        let action = between(&page.body, "action=\"", "\"").context("a form")?;
        let prompt = between(&page.body, "name=\"prompt\" value=\"", "\"").context("its kind")?;
        let (prompt, login) = (format!("prompt={prompt}"), format!("login={account}"));
        let mut arguments = flags.to_vec();
        arguments.extend(["--data-urlencode", &prompt]);
        if prompt == "prompt=login" {
            arguments.extend([
                "--data-urlencode",
                &login,
                "--data-urlencode",
                "password=any",
            ]);
        }
        let action = match action.starts_with('/') {
            true => format!("{PROVIDER}{action}"),
            false => action.to_owned(),
        };
        arguments.push(&action);
        self.curl(&arguments)
    }

    fn curl(&self, arguments: &[&str]) -> Result<Page> {
        let (ca, jar) = (self.bed.path("ca.crt"), self.jar.to_string_lossy());
        let ca = ca.to_string_lossy();
        let mut all = vec![
            "-sS",
            "--max-time",
            "20",
            "--max-redirs",
            "12",
            "--cacert",
            &ca,
        ];
        all.extend(["-b", &jar, "-c", &jar]);
        all.extend(["-w", "\n%{response_code} %{url_effective} %{redirect_url}"]);
        all.extend(arguments);
        let text = self.bed.hub.output("curl", &all)?;
        let (body, end) = text
            .trim_end_matches('\n')
            .rsplit_once('\n')
            .context("curl's last line")?;
        let mut words = end.split(' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        Ok(Page {
            status: word().parse()?,
            url: word(),
            next: word(),
            body: body.to_owned(),
        })
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    Some(rest.split_once(after)?.0)
}
