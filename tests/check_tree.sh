#!/usr/bin/env bash
# check_tree DIR: the rules of the house that a script can check: include order, sizes, bans.
set -u
cd "$1" || exit 2
fails=0
fail() { printf 'check_tree: %s\n' "$*"; fails=$((fails + 1)); }

# Include order: a folder includes itself and those to its left.
order=(kernels engine spec drafts experiments)
for ((i = 0; i < ${#order[@]}; i++)); do
    for ((j = i + 1; j < ${#order[@]}; j++)); do
        hits=$(grep -rn --include='*.[ch]' --include='*.cu' "#include \"${order[j]}/" "${order[i]}")
        [ -z "$hits" ] || fail "${order[i]}/ includes ${order[j]}/, which stands to its right: $hits"
    done
done
hits=$(grep -rnE --include='*.[ch]' '#include "[^/"]+"' "${order[@]}" tests)
[ -z "$hits" ] || fail "an include without its folder: $hits"
hits=$(grep -rn --include='*.[ch]' '#include "tests/' "${order[@]}")
[ -z "$hits" ] || fail "the product includes tests/: $hits"

# Each library has one home.
home() { # home PATTERN ALLOWED-PATHS-REGEX
    local hits
    hits=$(grep -rlE --include='*.[ch]' --include='*.cu' "#include [<\"]$1" "${order[@]}" | grep -vE "$2")
    [ -z "$hits" ] || fail "$1 is included outside its home: $hits"
}
home 'hdf5' '^experiments/record'
home 'yaml' '^experiments/(config|run)'
home 'pcre2' '^engine/|^experiments/run'
home 'check\.h' '^tests/'
home 'nccl' '^engine/comm_nccl'
home 'cublasLt' '^kernels/gemm_lt'
home 'cuda' '^kernels/.*\.cu|^engine/backend_cuda'

# Sizes, half again past the soft limit.
while IFS= read -r f; do
    n=$(wc -l <"$f")
    case $f in *.h) max=180 ;; *) max=600 ;; esac
    [ "$n" -le "$max" ] || fail "$f has $n lines, more than $max: split it by idea"
done < <(find "${order[@]}" -name '*.[ch]' -o -name '*.cu')

# Functions: 90 lines between an opening and its closing brace in column 0.
while IFS= read -r line; do
    [ -z "$line" ] || fail "$line"
done < <(find "${order[@]}" -name '*.c' -o -name '*.cu' | xargs awk '
    FNR == 1 { open = 0 }
    /^\{/ { open = FNR }
    /^\}/ { if (open && FNR - open > 91) print FILENAME ":" open ": a function of " FNR - open - 1 " lines, more than 90"; open = 0 }')

# Bans.
ban() { # ban REGEX WHERE WHY
    local hits
    hits=$(grep -rnE --include='*.[ch]' --include='*.cu' "$1" $2)
    [ -z "$hits" ] || fail "$3: $hits"
}
ban '\b(atoi|strcpy|strcat|sprintf|getenv|gets)\(' "${order[*]}" "a banned function"
ban '#include ".*\.c"' "${order[*]} tests" "a .c file is included"
ban '\b(TODO|FIXME|XXX)\b' "${order[*]} tests" "an open end"
hits=$(grep -rnE --include='*.c' '\b_?exit\(' "${order[@]}" | grep -v '^experiments/main\.c')
[ -z "$hits" ] || fail "exit outside main.c: $hits"
hits=$(find . -path ./build -prune -o \( -name 'util*' -o -name 'common*' -o -name 'helper*' \) -name '*.[ch]' -print)
[ -z "$hits" ] || fail "a file named after nothing: $hits"

[ $fails = 0 ] && echo "check_tree: clean"
exit $((fails > 0))
