# Builds the layer of a bot's image; runs in a Debian tree that has a compiler. Leaves /layer.tar.
set -eu
venv=/opt/hummingbot
home=/home/hummingbot
site=$venv/lib/python3.11/site-packages

python3 -m venv "$venv"
install() {
  "$venv/bin/pip" install --quiet --no-cache-dir --no-deps --no-build-isolation --require-hashes "$@"
}
install -r /build/build-requirements.txt
install -r /build/requirements.txt
# It is asked to run, not to be fast.
export CFLAGS='-O1 -g0'
# Beside the folders that it works in, as in its own image: it looks for them next to its package.
install --target "$home" -r /build/hummingbot.txt
mkdir -p "$home/conf" "$home/data" "$home/logs" "$home/scripts"
echo "$home" >"$site/hummingbot.pth"

rm -rf "$venv/include" "$venv/share" "$home/bin" \
  "$site"/pip "$site"/pip-* "$site"/setuptools* "$site"/_distutils_hack "$site"/distutils-precedence.pth \
  "$site"/pkg_resources "$site"/wheel* "$site"/Cython* "$site"/cython* "$site"/pyximport
find "$venv/bin" -type f ! -name 'python*' -delete
find "$venv/bin" -type l -name 'pip*' -delete
rm -rf "$site"/lighter/signers/*darwin* "$site"/lighter/signers/*windows* "$site"/lighter/signers/*arm64*
find "$site/numpy" "$site/pandas" "$site/scipy" -type d -name tests -prune -exec rm -rf {} +
find "$venv" "$home" -type d -name __pycache__ -prune -exec rm -rf {} +
find "$venv" "$home" -type f \
  \( -name '*.c' -o -name '*.cpp' -o -name '*.h' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' \) -delete
find "$home" -name '*.so' -exec strip --strip-unneeded {} +

cat >"$venv/bin/hbot" <<'PYTHON'
#!/opt/hummingbot/bin/python3
from hummingbot.cli.main import main
main()
PYTHON
chmod 755 "$venv/bin/hbot"

# A container may not write bytecode, so it is made here, and never compared with its source. Packages carry files for
# other Pythons, too, which fail.
python3 -m compileall -q -j 2 -f --invalidation-mode unchecked-hash "$venv" "$home" /usr/lib/python3.11 >/dev/null || true
[ -f "$home/hummingbot/cli/__pycache__/engine.cpython-311.pyc" ]
cd /
find usr/lib/python3.11 -type d -name __pycache__ >/build/bytecode
tar -c -f layer.tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=go-w \
  opt/hummingbot home/hummingbot -T /build/bytecode
