#!/usr/bin/env bash
# Builds what tests/tests/kubernetes_real.rs needs from Debian's packages, into
# target/kubernetes: kube-apiserver from the source package `kubernetes` (with
# its vendored dependencies), etcd and kubectl from theirs. About ten minutes
# and 3 GB meanwhile, in a folder of its own; nothing is installed but rsync.
# Where there are such programs already, name their folder in KUBEBUILDER_ASSETS
# instead.
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
place=${1:-$root/target/kubernetes}
if [ -x "$place/kube-apiserver" ]; then
    echo "$place"
    exit 0
fi
work=$(mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
cd "$work"
command -v rsync >/dev/null || apt-get -q install -y rsync
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
http://deb.debian.org/debian bookworm main" >sources.list
mkdir -p lists/partial
apt=(apt-get -q -o "Dir::Etc::sourcelist=$work/sources.list"
    -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists"
    -o APT::Sandbox::User=root)
"${apt[@]}" update
"${apt[@]}" source --download-only kubernetes
apt-get -q -o APT::Sandbox::User=root download \
    etcd-server kubernetes-client golang-1.19-go golang-1.19-src \
    golang-github-modern-go-reflect2-dev
for package in ./*.deb; do dpkg --extract "$package" packages; done
mkdir source
tar --extract --file kubernetes_*.orig.tar.gz --directory source --strip-components 1
cd source
# The vendored one is older than Go 1.18 and makes the server crash under it.
rm vendor/github.com/modern-go/reflect2/*.{go,s}
cp "$work"/packages/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} \
    vendor/github.com/modern-go/reflect2/
mkdir -p .go/src/k8s.io home
ln -s ../../.. .go/src/k8s.io/kubernetes
go=$work/packages/usr/lib/go-1.19
env GOROOT="$go" PATH="$go/bin:$PATH" GOPATH="$PWD/.go" HOME="$PWD/home" \
    CGO_ENABLED=0 GOPROXY=off KUBE_GIT_TREE_STATE=archive KUBE_GIT_COMMIT=debian \
    KUBE_GIT_VERSION=v1.20.2 nice make WHAT=cmd/kube-apiserver
mkdir -p "$place"
install "$work"/packages/usr/bin/{etcd,kubectl} "$place"
install _output/bin/kube-apiserver "$place"
echo "$place"
