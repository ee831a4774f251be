//! The systemd units of a pair's programs. systemd 250 or newer.

/// The user that all three run as; the stores belong to it.
pub(super) const USER: &str = "culvert";
/// Where the join string lies; the unit itself is readable by everybody.
pub(super) const JOIN_FILE: &str = "/etc/culvert/pair.join";

/// What differs from unit to unit.
pub(super) struct Unit {
    /// The name of unit, state directory and log.
    pub(super) name: &'static str,
    /// One line for people.
    pub(super) about: &'static str,
    /// Program and flags.
    pub(super) command: String,
    /// Below /var/lib; none where the store is elsewhere, or there is none.
    pub(super) has_state: bool,
    /// A directory outside of /var/lib that it writes.
    pub(super) writes: Option<String>,
    /// It reads [`JOIN_FILE`].
    pub(super) joins: bool,
    /// It listens below port 1024.
    pub(super) binds_low: bool,
}

impl Unit {
    /// The text of the unit.
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "[Unit]\n\
             Description={}\n\
             Wants=network-online.target\n\
             After=network-online.target\n\
             StartLimitIntervalSec=0\n\
             \n\
             [Service]\n",
            self.about
        );
        if self.joins {
            text.push_str(&format!(
                "LoadCredential=join:{JOIN_FILE}\nEnvironment=CULVERT_JOIN_FILE=%d/join\n"
            ));
        }
        text.push_str(&format!(
            "ExecStart={}\nRestart=always\nRestartSec=5\nTimeoutStopSec=45\nLimitNOFILE=1048576\n\
             User={USER}\nGroup={USER}\n",
            self.command
        ));
        if self.has_state {
            let name = self.name;
            text.push_str(&format!("StateDirectory={name}\nStateDirectoryMode=0700\n"));
        }
        if let Some(dir) = &self.writes {
            text.push_str(&format!("ReadWritePaths={dir}\n"));
        }
        let capability = if self.binds_low {
            "CAP_NET_BIND_SERVICE"
        } else {
            ""
        };
        text.push_str(&format!(
            "UMask=0077\n\
             AmbientCapabilities={capability}\n\
             CapabilityBoundingSet={capability}\n\
             NoNewPrivileges=yes\n\
             ProtectSystem=strict\n\
             ProtectHome=yes\n\
             ProtectKernelTunables=yes\n\
             ProtectKernelModules=yes\n\
             ProtectControlGroups=yes\n\
             PrivateTmp=yes\n\
             PrivateDevices=yes\n\
             RestrictSUIDSGID=yes\n\
             RestrictNamespaces=yes\n\
             LockPersonality=yes\n\
             RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK\n\
             \n\
             [Install]\n\
             WantedBy=multi-user.target\n"
        ));
        text
    }

    /// What root pastes: user and unit. The secret goes into its file before, or the unit tries again
    /// until it is there.
    pub(super) fn script(&self) -> String {
        let (name, text) = (self.name, self.text());
        let join = if self.joins {
            format!(
                "[ -s {JOIN_FILE} ] || echo 'put the word cvr_... into {JOIN_FILE}, mode 0600' >&2\n"
            )
        } else {
            String::new()
        };
        format!(
            "id -u {USER} >/dev/null 2>&1 || useradd --system --user-group --no-create-home \
             --home-dir /nonexistent --shell /usr/sbin/nologin {USER}\n\
             install -m 0644 /dev/stdin /etc/systemd/system/{name}.service <<'EOF'\n{text}EOF\n\
             {join}\
             systemctl daemon-reload\n\
             systemctl enable --now {name}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit() -> Unit {
        Unit {
            name: "culvert-broker",
            about: "Culvert broker",
            command: "/bin/true --listen 127.0.0.1:8199".to_owned(),
            has_state: true,
            writes: None,
            joins: true,
            binds_low: false,
        }
    }

    #[test]
    fn it_waits_for_the_network_comes_back_and_is_a_user_of_its_own() {
        let text = unit().text();
        for line in [
            "After=network-online.target",
            "Restart=always",
            "RestartSec=5",
            "User=culvert",
            "StateDirectory=culvert-broker",
            "LoadCredential=join:/etc/culvert/pair.join",
            "NoNewPrivileges=yes",
            "CapabilityBoundingSet=",
        ] {
            assert!(text.lines().any(|seen| seen == line), "{line}: {text}");
        }
        let relay = Unit {
            binds_low: true,
            joins: false,
            ..unit()
        };
        assert!(
            relay
                .text()
                .contains("AmbientCapabilities=CAP_NET_BIND_SERVICE\n")
        );
        assert!(!relay.script().contains("pair.join"));
    }

    #[test]
    fn systemd_takes_the_units() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("culvert-broker.service");
        std::fs::write(&file, unit().text()).unwrap();
        let verify = std::process::Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&file)
            .output();
        // Where there is no systemd its opinion is not asked.
        let Ok(verified) = verify else { return };
        let said = String::from_utf8_lossy(&verified.stderr);
        let ours: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("culvert-broker.service"))
            .collect();
        assert_eq!(ours, Vec::<&str>::new());
    }
}
