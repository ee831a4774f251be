//! A PostgreSQL server of the test's own, as Debian packages it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use culvert_control::store::Dsn;
use culvert_net::tls::dev::DevCa;
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _};

const USER: &str = "postgres";
const PORT: u16 = 5432;
const START_MAX: Duration = Duration::from_secs(30);

/// Ends with the value; its files too.
pub struct Server {
    process: Child,
    files: tempfile::TempDir,
    /// A loopback address that no other test process uses.
    pub ip: String,
}

impl Server {
    /// `None` where PostgreSQL is not installed; as root that is a failure.
    pub async fn start() -> Option<Self> {
        let Some(initdb) = tool("initdb") else {
            assert!(
                !is_root(),
                "PostgreSQL is not installed: apt-get install postgresql"
            );
            eprintln!("SKIP: PostgreSQL is not installed");
            return None;
        };
        let files = tempfile::Builder::new()
            .prefix("culvert-pg-")
            .tempdir()
            .unwrap();
        let [_, high, middle, low] = std::process::id().to_be_bytes();
        let ip = format!("127.{}.{middle}.{low}", high | 64);
        let ca = DevCa::new("postgres").unwrap();
        ca.write(files.path()).unwrap();
        let cert = ca.server(&[&ip]).unwrap();
        std::fs::write(files.path().join("server.pem"), &cert.cert_pem).unwrap();
        let key = files.path().join("server.key");
        std::fs::write(&key, &cert.key_pem).unwrap();
        run(Command::new("chmod").arg("600").arg(&key));
        std::fs::write(files.path().join("ca.pem"), ca.pem()).unwrap();
        own(files.path());
        let data = files.path().join("data");
        let mut init = as_user(&initdb);
        init.arg("-D")
            .arg(&data)
            .args(["-A", "trust", "-U", USER, "--no-sync"]);
        run(init.stdout(Stdio::null()));
        let rules = "local all all trust\nhostssl all all 127.0.0.0/8 scram-sha-256\n";
        std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
        let mut server = Self {
            process: serve(files.path(), &ip),
            files,
            ip,
        };
        server.wait().await;
        Some(server)
    }

    /// A new database over the Unix socket.
    pub async fn database(&self, name: &str) -> Dsn {
        let mut connection = PgConnection::connect_with(&self.options()).await.unwrap();
        // The names of cases, cut to what the server keeps.
        let name: String = name.chars().take(60).collect();
        let create = format!("CREATE DATABASE {name}");
        sqlx::query(AssertSqlSafe(create))
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        let host = self.files.path().display();
        Dsn::parse(&format!("host={host} user={USER} dbname={name}")).unwrap()
    }

    /// A file of the server's directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// One statement as the administrator.
    pub async fn say(&self, statement: &'static str) {
        let mut connection = PgConnection::connect_with(&self.options()).await.unwrap();
        sqlx::raw_sql(statement)
            .execute(&mut connection)
            .await
            .unwrap();
    }

    /// Kill -9, and a start on the same files.
    pub async fn crash(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = serve(self.files.path(), &self.ip);
        self.wait().await;
    }

    fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(self.files.path())
            .port(PORT)
            .username(USER)
            .database(USER)
    }

    async fn wait(&mut self) {
        let deadline = Instant::now() + START_MAX;
        while PgConnection::connect_with(&self.options()).await.is_err() {
            assert!(Instant::now() < deadline, "PostgreSQL does not start");
            // After a crash the old backends may hold the files for a moment.
            if self.process.try_wait().unwrap().is_some() {
                self.process = serve(self.files.path(), &self.ip);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn serve(files: &Path, ip: &str) -> Child {
    let file = |name: &str| files.join(name).display().to_string();
    let mut command = as_user(&tool("postgres").unwrap());
    command.arg("-D").arg(files.join("data"));
    for setting in [
        format!("listen_addresses={ip}"),
        format!("port={PORT}"),
        format!("unix_socket_directories={}", files.display()),
        "fsync=off".to_owned(),
        "shared_buffers=16MB".to_owned(),
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", file("server.pem")),
        format!("ssl_key_file={}", file("server.key")),
    ] {
        command.arg("-c").arg(setting);
    }
    let log = std::fs::File::create(files.join("log")).unwrap();
    command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

/// A program of the newest installed version.
fn tool(name: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let paths = versions.filter_map(|version| Some(version.ok()?.path().join("bin").join(name)));
    paths.filter(|path| path.exists()).max()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// PostgreSQL does not run as root.
fn as_user(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", USER, "--regid", USER, "--init-groups"])
        .arg(program);
    command
}

fn own(files: &Path) {
    if is_root() {
        run(Command::new("chown").args(["-R", USER]).arg(files));
    }
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}
