# Succeeds once this run of the bot has started its strategy: it handles SIGTERM from then on, and writes meta.json when it
# begins to start and status.json when it has. The signals it handles are a property of the process, so that what an
# earlier run left behind is not taken for this one's.
set -eu
# Once is enough: kubelets before 1.35 ask again when they restart, and a strategy that has ended by then, as by its limit of
# losses, must not be started anew. Time at which process 1 began, field 22, counted after its name.
stat=$(cat /proc/1/stat)
set -- ${stat##*) }
began=${20}
[ "$(cat /tmp/started 2>&1)" != "$began" ] || exit 0
grep -q '^SigCgt:.*[4-7c-f]...$' /proc/1/status
cd /home/hummingbot/data/bot
[ status.json -nt meta.json ]
grep -q '"strategy_running": true' status.json
# A bot that has filled its /tmp has started all the same.
echo "$began" 2>/dev/null >/tmp/started || :
