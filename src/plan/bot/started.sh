# Succeeds once this run of the bot has started its strategy: it handles SIGTERM from then on, and writes meta.json when it
# begins to start and status.json when it has. The signals it handles are a property of the process, so that what an
# earlier run left behind is not taken for this one's.
set -eu
grep -q '^SigCgt:.*[4-7c-f]...$' /proc/1/status
cd /home/hummingbot/data/bot
[ status.json -nt meta.json ]
grep -q '"strategy_running": true' status.json
