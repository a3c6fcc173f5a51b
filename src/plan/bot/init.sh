# Lays out the configuration of one bot; runs before the bot at every start of its pod.
set -eu
conf=/home/hummingbot/conf
data=/home/hummingbot/data

mkdir -p "$conf/connectors" "$conf/strategies" "$conf/scripts" "$conf/controllers"

fill() {
  sed -e "s/[\$]{BOT_INDEX}/$BOT_INDEX/g" -e "s/[\$]{BOT_NAME}/$BOT_NAME/g" "$1" >"$2"
}
fill /etc/torpor/conf_client.yml "$conf/conf_client.yml"
fill /etc/torpor/strategy.yml "$conf/$CONFIG_FOLDER/$CONFIG_FILE"

# Without an id of its own a controller gets a new one at every start, and then runs twice.
if [ "$CONFIG_FOLDER" = controllers ] && ! grep -q '^id:' "$conf/controllers/$CONFIG_FILE"; then
  printf '\nid: %s\n' "$BOT_NAME" >>"$conf/controllers/$CONFIG_FILE"
fi

# Hummingbot's own logging ends a file each day, however large, and a full volume has no room for trades. The eight files of
# these are bounded.
template=/home/hummingbot/hummingbot/templates/hummingbot_logs_TEMPLATE.yml
bytes=${LOG_BYTES:-10000000}
if [ -e "$template" ]; then
  sed -e 's/TimedRotatingFileHandler/RotatingFileHandler/' -e "s/^\( *\)when:.*/\1maxBytes: $bytes/" \
    -e '/^ *interval:/d' "$template" >"$conf/hummingbot_logs.yml"
fi
# Those of an earlier release: nothing else would ever delete them. No bot fails to start for that.
find /home/hummingbot/logs -type f \( -name '*.log.????-??-??*' -o -size "+$((2 * bytes))c" \) -exec rm -f {} + || :

# The status of an earlier run says nothing about the one to come.
rm -f "$data/bot/status.json"

for keys in /run/secrets/exchange/*.json; do
  [ -e "$keys" ] || continue
  hbot connect "$(basename "$keys" .json)" --keys-stdin --replace <"$keys"
done
