# Unpacks PostgreSQL into the layer of its image; runs in a Debian tree. Leaves /layer.tar.
set -eu
to=/usr/lib/postgresql/17
python3 -m venv /venv
/venv/bin/pip download --quiet --no-cache-dir --no-deps --only-binary :all: --require-hashes -d /wheels \
  -r /build/requirements.txt
python3 -m zipfile -e /wheels/*.whl /unpacked
mkdir -p "$(dirname "$to")" /usr/local/bin
mv /unpacked/*/pginstall "$to"
rm -rf "$to/include" "$to/share/doc" "$to/share/man" "$to/lib/pgxs" "$to/lib/pkgconfig"
find "$to" -name '*.a' -delete
chmod 755 "$to"/bin/*
cp /build/docker-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
chmod 755 /usr/local/bin/docker-entrypoint.sh
cd /
tar -c -f layer.tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=go-w \
  usr/lib/postgresql usr/local/bin/docker-entrypoint.sh
