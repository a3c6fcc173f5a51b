# Builds the layer of the dashboard's image; runs in a Debian tree. Leaves /layer.tar.
set -eu
venv=/opt/dashboard
home=/home/dashboard
site=$venv/lib/python3.11/site-packages

python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --no-cache-dir --no-deps --only-binary :all: --require-hashes -r /build/requirements.txt
mkdir -p "$home/.streamlit"
cp /build/main.py "$home/main.py"
cp /build/config.toml "$home/.streamlit/config.toml"

rm -rf "$venv/include" "$venv/share" "$site"/pip "$site"/pip-* "$site"/setuptools* "$site"/_distutils_hack \
  "$site"/distutils-precedence.pth "$site"/pkg_resources "$site/pyarrow/include"
find "$venv/bin" -type f ! -name 'python*' ! -name streamlit -delete
find "$venv/bin" -type l -name 'pip*' -delete
find "$site/numpy" "$site/pandas" "$site/pyarrow" -type d -name tests -prune -exec rm -rf {} +
find "$venv" -type d -name __pycache__ -prune -exec rm -rf {} +
find "$venv" -type f \( -name '*.c' -o -name '*.cpp' -o -name '*.h' -o -name '*.pyx' -o -name '*.pyi' -o -name '*.a' \) -delete

# A container may not write bytecode, so it is made here, and never compared with its source. Packages carry files for
# other Pythons, too, which fail.
python3 -m compileall -q -j 2 -f --invalidation-mode unchecked-hash "$venv" "$home" /usr/lib/python3.11 >/dev/null || true
[ -f "$site/streamlit/__pycache__/__init__.cpython-311.pyc" ]
cd /
find usr/lib/python3.11 -type d -name __pycache__ >/build/bytecode
tar -c -f layer.tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=go-w \
  opt/dashboard home/dashboard -T /build/bytecode
