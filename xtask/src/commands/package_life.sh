# The life of the package in a fresh Debian system. Ends with the first thing
# that is not as it should be.
set -eux
export DEBIAN_FRONTEND=noninteractive

# Everything that a package may leave, but for the records of dpkg itself.
files() {
    find /etc /usr /var /run /opt /lib /sys/fs \( -path /var/lib/dpkg -o -path /var/log \
        -o -path /var/cache -o -path /var/lib/systemd \) -prune -o -print 2>/dev/null | sort
}
enabled=/etc/systemd/system/multi-user.target.wants/egress-agent.service
version() { dpkg-query --show --showformat='${Version}' egress-agent; }

files >/before

# Install.
dpkg --install /first.deb
test "$(version)" = 0.1.0-1
dpkg --verify egress-agent
egress-agent --version
egress-agent --check
egressctl validate /usr/share/doc/egress-agent/examples
test -L "$enabled"
test -f "$(readlink -f "$enabled")"
test "$(stat -c %a /etc/egress/secrets)" = 700
test "$(stat -c %a /etc/egress/policy)" = 755
test -s /usr/share/man/man1/egress-agent.1.gz
test -s /usr/share/man/man1/egressctl.1.gz
test -s /usr/share/bash-completion/completions/egressctl
dpkg-query --show --showformat='${Conffiles}\n' egress-agent | grep /etc/egress/egress-agent.toml
dpkg-query --show --showformat='${Conffiles}\n' egress-agent | grep /etc/default/egress-agent

# Upgrade: what an operator changed stays.
echo 'log = "debug"' >>/etc/egress/egress-agent.toml
echo 'kind: None' >/etc/egress/policy/mine.yaml
mkdir -p /var/lib/egress
touch /var/lib/egress/addresses
dpkg --force-confdef --force-confold --install /second.deb
test "$(version)" = 0.1.0-2
grep '^log = "debug"$' /etc/egress/egress-agent.toml
test -f /etc/egress/policy/mine.yaml
test -f /var/lib/egress/addresses
test -L "$enabled"

# Disabled by the operator: an upgrade does not enable it.
unit=$(readlink "$enabled")
rm "$enabled"
dpkg --force-confold --install /second.deb
test ! -e "$enabled"
ln -s "$unit" "$enabled"

# Remove: settings and state stay.
dpkg --remove egress-agent
test ! -e /usr/bin/egress-agent
test ! -e /lib/systemd/system/egress-agent.service
grep '^log = "debug"$' /etc/egress/egress-agent.toml
test -f /var/lib/egress/addresses

# Install again over them, then purge: what is not ours stays.
dpkg --force-confold --install /second.deb
grep '^log = "debug"$' /etc/egress/egress-agent.toml
dpkg --purge egress-agent
test ! -e /etc/egress/egress-agent.toml
test ! -e /var/lib/egress
test -f /etc/egress/policy/mine.yaml

# Without that, nothing is left.
rm /etc/egress/policy/mine.yaml
dpkg --install /first.deb
dpkg --purge egress-agent
files >/after
diff /before /after
