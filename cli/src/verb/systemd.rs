//! The agent as a systemd service: a script that installs unit and secret.

/// Where the secret lies; the unit itself is readable by everybody.
const SECRET: &str = "/etc/culvert/agent.join";
const UNIT: &str = "/etc/systemd/system/culvert-agent.service";

/// What root pastes on the private side.
pub fn script(cluster: &str, join: &str) -> String {
    let unit = unit(cluster);
    format!(
        "install -d -m 0755 /etc/culvert\n\
         install -m 0600 /dev/stdin {SECRET} <<'EOF'\n{join}\nEOF\n\
         install -m 0644 /dev/stdin {UNIT} <<'EOF'\n{unit}EOF\n\
         systemctl daemon-reload\n\
         systemctl enable --now culvert-agent"
    )
}

/// The unit (contract B-34). systemd 250 or newer.
fn unit(cluster: &str) -> String {
    format!(
        "[Unit]\n\
         Description=Culvert agent of {cluster}\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         LoadCredential=join:{SECRET}\n\
         Environment=CULVERT_JOIN_FILE=%d/join\n\
         ExecStart=/usr/local/bin/culvert-agent --target HOST:PORT\n\
         Restart=always\n\
         RestartSec=5\n\
         TimeoutStopSec=45\n\
         LimitNOFILE=1048576\n\
         DynamicUser=yes\n\
         StateDirectory=culvert-agent\n\
         StateDirectoryMode=0700\n\
         NoNewPrivileges=yes\n\
         ProtectSystem=strict\n\
         ProtectHome=yes\n\
         PrivateTmp=yes\n\
         PrivateDevices=yes\n\
         RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_in_a_file_of_root_and_not_in_the_unit() {
        let script = script("prod-eu", "cvj_secret");
        assert_eq!(script.matches("cvj_secret").count(), 1);
        assert!(
            script.contains("install -m 0600 /dev/stdin /etc/culvert/agent.join <<'EOF'\ncvj_")
        );
        assert!(!unit("prod-eu").contains("cvj_"));
    }

    #[test]
    fn systemd_takes_the_unit() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("culvert-agent.service");
        let text = unit("prod-eu").replace("/usr/local/bin/culvert-agent", "/bin/true");
        std::fs::write(&file, text).unwrap();
        let verify = std::process::Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&file)
            .output();
        // Where there is no systemd its opinion is not asked.
        let Ok(verified) = verify else { return };
        let said = String::from_utf8_lossy(&verified.stderr);
        let ours: Vec<&str> = said
            .lines()
            .filter(|l| l.contains("culvert-agent.service"))
            .collect();
        assert_eq!(ours, Vec::<&str>::new());
    }
}
