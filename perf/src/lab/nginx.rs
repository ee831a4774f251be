//! nginx as a reverse proxy on both hops, in its best known configuration.

use std::net::SocketAddr;

use anyhow::Result;

use super::{Host, LOCAL, Lab, RELAY_CPU, Running, START_MAX};
use crate::testbed::{Process, Spawn};

pub(super) fn start(lab: &Lab, service: SocketAddr, tls: bool) -> Result<Running> {
    let (entry, middle) = ((LOCAL, 9101).into(), (LOCAL, 9102).into());
    let (listen, scheme) = if tls { (" ssl", "https") } else { ("", "http") };
    let agent = hop(
        lab,
        "nginx-agent",
        middle,
        listen,
        &format!("http://{service}"),
    )?;
    let hub = hop(lab, "nginx-hub", entry, "", &format!("{scheme}://{middle}"))?;
    Ok(Running {
        entry: Some(entry),
        prefix: String::new(),
        hub: vec![hub],
        agent: vec![agent],
        ..Running::default()
    })
}

/// One hop of its stream module.
pub(super) fn stream(lab: &Lab) -> Result<Running> {
    let base = lab.directory().display();
    let config = lab.path("nginx-stream.conf");
    std::fs::write(
        &config,
        format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
             daemon off; master_process off; user root; pid {base}/nginx-stream.pid;
             worker_rlimit_nofile 20000;
             events {{ worker_connections 19900; multi_accept on; }}
             stream {{
               proxy_buffer_size 64k; tcp_nodelay on; proxy_timeout 1h; proxy_half_close on;
               server {{ listen {listen} backlog=4096; proxy_pass {service}; }} }}",
            listen = super::hop::listen(),
            service = lab.service(Host::Hub),
        ),
    )?;
    let spawn = Spawn::new("nginx").args(["-e", "stderr", "-c", &config.to_string_lossy()]);
    super::hop::start(lab, "nginx-stream", spawn)
}

fn hop(lab: &Lab, name: &str, at: SocketAddr, listen: &str, to: &str) -> Result<Process> {
    let (scheme, upstream) = to.split_once("://").expect("written above");
    let base = lab.directory().display();
    let config = lab.path(&format!("{name}.conf"));
    std::fs::write(
        &config,
        format!(
            "daemon off; master_process off; user root; pid {base}/{name}.pid;
             events {{ worker_connections 4096; multi_accept on; }}
             http {{
               access_log off; tcp_nodelay on; keepalive_requests 100000000; keepalive_timeout 1h;
               client_body_temp_path {base}/{name}-1; proxy_temp_path {base}/{name}-2;
               fastcgi_temp_path {base}/{name}-3; uwsgi_temp_path {base}/{name}-4;
               scgi_temp_path {base}/{name}-5; proxy_max_temp_file_size 0;
               ssl_certificate {base}/cert.pem; ssl_certificate_key {base}/key.pem;
               ssl_session_cache shared:a:1m;
               upstream next {{
                 server {upstream}; keepalive 64; keepalive_requests 100000000;
                 keepalive_timeout 1h;
               }}
               server {{
                 listen {at}{listen} backlog=4096;
                 location / {{
                   proxy_pass {scheme}://next; proxy_http_version 1.1;
                   proxy_set_header Connection ''; proxy_set_header Host $host;
                   proxy_buffer_size 64k; proxy_buffers 8 64k; proxy_ssl_verify off;
                 }}
               }} }}"
        ),
    )?;
    let mut process = Spawn::new("nginx")
        .args(["-e", "stderr", "-c", &config.to_string_lossy()])
        .cpu(RELAY_CPU)
        .start_in(lab.directory(), lab.at(Host::Hub), name)?;
    process.wait_port(lab.at(Host::Hub), at, START_MAX)?;
    Ok(process)
}
