"""The images that critest names, built from Debian packages and small C sources and pushed to a local registry.

They are pushed under their upstream paths without the upstream host, so a mirror of registry.k8s.io, k8s.gcr.io or
gcr.io needs no other path. Each has what the specs look at: users, groups, tags that share an image and tags that do
not, both families of media types, single manifests and lists.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from conformance.packages import add_libraries, unpacked
from conformance.programs import EFFECTIVE_UID, IPCS, PGREP
from support.images import ETC_GROUP, ETC_PASSWD, Image, Layer, Pusher, busybox_layer, compile_static, pause_binary

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MIRRORED = ("registry.k8s.io", "k8s.gcr.io", "gcr.io")
E2E, STAGING = "e2e-test-images", "k8s-staging-cri-tools"
#: The one that critest refers to by tag; see `UPSTREAM_DIGEST`.
DIGEST_REPOSITORY = f"{STAGING}/test-image-digest"
#: The digest of the upstream build of that image, which critest names and which nothing but that build can have.
UPSTREAM_DIGEST = "sha256:9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf"
#: The pause image for the sandboxes; the specs delete 3.9.
SANDBOX_IMAGE = "registry.k8s.io/pause:3.10.2"

_PASSWD = ETC_PASSWD.replace("www:", "www-data:", 1)
_GROUP = ETC_GROUP.replace("www:", "www-data:", 1).replace(":www\n", ":www-data\n")

_NGINX = """
user nobody nogroup;
worker_processes 1;
pid /var/run/nginx.pid;
error_log stderr notice;
events {{ worker_connections 128; }}
http {{
    access_log /dev/stdout;
    client_body_temp_path /tmp/1; proxy_temp_path /tmp/2; fastcgi_temp_path /tmp/3;
    uwsgi_temp_path /tmp/4; scgi_temp_path /tmp/5;
    default_type text/html;
    server {{ listen {port}; location / {{ root /srv/www; index index.html; }} }}
}}
"""
_HTTPD = """
ServerRoot /usr/local/apache2
ServerName localhost
Listen 80
LoadModule mpm_event_module modules/mod_mpm_event.so
LoadModule authz_core_module modules/mod_authz_core.so
LoadModule dir_module modules/mod_dir.so
User nobody
Group nogroup
PidFile /tmp/httpd.pid
ErrorLog /proc/self/fd/2
LogLevel notice
DocumentRoot /srv/www
DirectoryIndex index.html
<Directory /srv/www>
    Require all granted
</Directory>
"""
_HTTPD_MODULES = ("mod_mpm_event.so", "mod_authz_core.so", "mod_dir.so")


def fetch() -> None:
    """Fetch the Debian packages that the images are made of; nothing else here needs a network."""
    for package in ("nginx", "apache2-bin"):
        unpacked(package)


def write_mirrors(directory: Path, registry: str) -> None:
    """Write the hosts.toml files that send the upstream registries' pulls to the local one."""
    for host in MIRRORED:
        folder = directory / host
        folder.mkdir(exist_ok=True)
        mirror = f'server = "http://{registry}"\n[host."http://{registry}"]\ncapabilities = ["pull", "resolve"]\n'
        (folder / "hosts.toml").write_text(mirror)


def push_all(registry: str) -> dict[str, str]:
    """Build and push every image; return the digest of each by "repository:tag"."""
    pusher = Pusher(registry)
    pushed: dict[str, str] = {}

    def push(name: str, image: Image, *, single: bool = False) -> None:
        repository, _, tag = name.partition(":")
        tag = tag or "latest"
        if single:
            pushed[f"{repository}:{tag}"] = pusher.image(repository, tag, image)
        else:
            # The first entry is for another machine: taking it would show at once.
            images = [replace(image, architecture=name) for name in ("arm64", "amd64")]
            pushed[f"{repository}:{tag}"] = pusher.index(repository, tag, images)

    for version in ("3.9", "3.10", "3.10.1", "3.10.2"):
        push(f"pause:{version}", _pause(version))
    push(f"{E2E}/busybox:1.29-2", box())
    push(f"{E2E}/nonewprivs:1.3", _set_uid())
    push(f"{E2E}/nginx:1.14-2", _nginx(80))
    push(f"{E2E}/httpd:2.4.39-4", _httpd())
    push(f"{STAGING}/hostnet-nginx-amd64", _nginx(12003), single=True)
    for number, family in enumerate(("docker", "oci", "oci"), 1):
        push(f"{STAGING}/test-image-{number}", replace(_marked(str(number)), family=family), single=number == 3)
    push(f"{STAGING}/test-image-latest", _marked("latest"))
    for tag in "123":
        push(f"{STAGING}/test-image-tags:{tag}", _marked("tags"))
    for tag in ("test", "all"):
        push(f"{STAGING}/test-image-tag:{tag}", _marked(tag))
    push(f"{DIGEST_REPOSITORY}:latest", _marked("digest"))
    for name, user in {
        "uid": "1002",
        "username": "www-data",
        "uid-group": "1003:1004",
        "username-group": "www-data:1004",
    }.items():
        push(f"{STAGING}/test-image-user-{name}", box(User=user))
    push(f"{STAGING}/test-image-predefined-group", _predefined_group())
    return pushed


@cache
def _base() -> bytes:
    """Return busybox's layer with the two programs that it lacks and the users that the specs know."""
    extra = Layer().file("bin/pgrep", compile_static(PGREP), 0o755).file("bin/ipcs", compile_static(IPCS), 0o755)
    for directory in ("home", "srv", "srv/www", "usr/sbin", "usr/local", "usr/local/bin"):
        extra.dir(directory)
    return extra.file("etc/passwd", _PASSWD).file("etc/group", _GROUP).tar()


def box(*layers: Layer, **config: Any) -> Image:
    """Return an image of busybox with further layers; `config` goes into its image configuration."""
    config = {"Cmd": ["sh"], "Env": [PATH], **config}
    return Image([busybox_layer(), _base(), *(layer.tar() for layer in layers)], config, "docker")


def _marked(name: str) -> Image:
    """Return an image that differs from the others of its kind by one file."""
    return box(Layer().file(f"image-{name}"))


def _pause(version: str) -> Image:
    config = {"Entrypoint": ["/pause"], "User": "65535:65535", "Env": [PATH], "Labels": {"version": version}}
    return Image([Layer().file("pause", pause_binary(), 0o755).tar()], config, "docker")


def _set_uid() -> Image:
    program = Layer().file("usr/local/bin/effective-uid", compile_static(EFFECTIVE_UID), 0o4755)
    return box(program, Entrypoint=["/usr/local/bin/effective-uid"], Cmd=None)


def _predefined_group() -> Image:
    files = Layer().file("etc/passwd", _PASSWD + "default-user:x:1000:1000::/home/default-user:/bin/sh\n")
    files.file("etc/group", _GROUP + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")
    return box(files.dir("home/default-user", uid=1000, gid=1000), User="1000")


def _nginx(port: int) -> Image:
    program = unpacked("nginx") / "usr/sbin/nginx"
    files = Layer().file("usr/sbin/nginx", program.read_bytes(), 0o755).dir("etc/nginx").dir("usr/share/nginx")
    for directory in ("var/lib", "var/lib/nginx", "var/log", "var/log/nginx", "var/run"):
        files.dir(directory)
    files.file("etc/nginx/nginx.conf", _NGINX.format(port=port)).file("srv/www/index.html", "<h1>nginx</h1>\n")
    config = {"Cmd": ["nginx", "-g", "daemon off;"], "ExposedPorts": {f"{port}/tcp": {}}, "StopSignal": "SIGTERM"}
    return box(add_libraries(files, program), **config)


def _httpd() -> Image:
    package = unpacked("apache2-bin")
    program = package / "usr/sbin/apache2"
    modules = [package / "usr/lib/apache2/modules" / name for name in _HTTPD_MODULES]
    top = "usr/local/apache2"
    files = Layer().dir(top).dir(f"{top}/bin").dir(f"{top}/conf").dir(f"{top}/modules").dir(f"{top}/logs")
    files.file(f"{top}/bin/httpd", program.read_bytes(), 0o755)
    for module in modules:
        files.file(f"{top}/modules/{module.name}", module.read_bytes())
    files.file(f"{top}/conf/httpd.conf", _HTTPD).file("srv/www/index.html", "<h1>httpd</h1>\n")
    return box(
        add_libraries(files, program, *modules),
        Cmd=["httpd", "-f", f"/{top}/conf/httpd.conf", "-D", "FOREGROUND"],
        Env=[f"PATH=/{top}/bin:{PATH.removeprefix('PATH=')}"],
        WorkingDir=f"/{top}",
        ExposedPorts={"80/tcp": {}},
        StopSignal="SIGWINCH",
    )
