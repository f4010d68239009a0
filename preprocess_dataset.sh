#!/usr/bin/env bash
# Make streams of tasks from the raw data in dataset/ (seed 1).
#
#   bash preprocess_dataset.sh                         all streams whose raw data exist or that need none
#   bash preprocess_dataset.sh biography_demo_task6    the named streams (clinc150 is short for clinc150_task15)
#   bash preprocess_dataset.sh --force [NAME...]       replace streams that have other content
#   bash preprocess_dataset.sh --raw-dir DIR [NAME...] read the raw data in DIR instead of dataset/
set -euo pipefail
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"

# stream | raw file in dataset/ ("or" another; -: needs none; only: made when named) | options
streams=(
    "biography_qa_task2 | biography_qa/qa/all.json | --dataset biography_qa"
    "biography_demo_task2 | - | --dataset biography_qa --preset demo"
    "biography_demo_task6 | only | --dataset biography_qa --preset demo --num-task 6"
    "TRACE_task8 | TRACE/20Minuten/train.json | --dataset TRACE"
    "zsre_task10 | zsre/zsre_mend_train_10000.json | --dataset zsre"
    "safety_alignment_llama2_task2 | safety_alignment/test_all/harmful_behaviors.csv | --dataset safety_alignment"
    "concept_1k_task10 | concept_1k/dataset_2024_1_30_11_40.txt or concept_1k/dataset.txt | --dataset concept_1k --num-task 10"
    "topic3datasets_task5 | topic3datasets/yahoo/train.csv | --dataset topic3datasets"
    "topic3datasets_agnews_dbpedia_task4 | only | --dataset topic3datasets --sources agnews,dbpedia"
    "topic3datasets_agnews_dbpedia_small_task4 | only | --dataset topic3datasets --sources agnews,dbpedia --num-sample-train-per-class 60 --num-sample-test-per-class 30 --name topic3datasets_agnews_dbpedia_small_task4"
    "clinc150_task15 | clinc150/data_full.json | --dataset clinc150"
    "clinc150_small_task5 | only | --dataset clinc150 --num-task 5 --num-sample-train-per-class 10 --num-sample-test-per-class 10 --name clinc150_small_task5"
    "clinc150_task15_numbertarget | only | --dataset clinc150 --variant numbertarget"
    "clinc150_task15_classidxplusone | only | --dataset clinc150 --variant classidxplusone"
    "banking77_task7 | banking77/train.csv | --dataset banking77"
    "fewrel_task8 | fewrel/FewRel-2021.json or fewrel/FewRel-2021.pkl or fewrel/train_wiki.json | --dataset fewrel"
    "tacred_task8 | tacred/TACRED-2021.json or tacred/TACRED-2021.pkl | --dataset tacred"
    "superni_task15 | cl_benchmark/SuperNI/task875_emotion_classification/train.json | --dataset superni"
    "superni_task15_order2 | only | --dataset superni --order 2"
    "long_sequence_task15 | cl_benchmark/Long_Sequence/yahoo/train.json | --dataset long_sequence"
    "long_sequence_task15_order5 | only | --dataset long_sequence --order 5"
    "long_sequence_task15_order6 | only | --dataset long_sequence --order 6"
    "standard_cl_task4 | cl_benchmark/Long_Sequence/yahoo/train.json | --dataset standard_cl"
    "standard_cl_task4_order2 | only | --dataset standard_cl --order 2"
    "standard_cl_task4_order3 | only | --dataset standard_cl --order 3"
    "fewnerd_task11_base6_inc6 | fewnerd/train.txt | --dataset fewnerd"
    "i2b2_task5_base8_inc2 | i2b2/train.txt | --dataset i2b2"
    "ontonotes5_task6_base8_inc2 | ontonotes5/train.txt | --dataset ontonotes5"
    "conll2003_task4_base1_inc1 | conll2003/train.txt | --dataset conll2003"
)

options=(--seed 1)
raw_dir=dataset
while [[ "${1:-}" == --* ]]; do
    case "$1" in
    --force) options+=(--force) ;;
    --raw-dir)
        if [[ -z "${2:-}" ]] || ! raw_dir=$(cd "$called_from" && cd "$2" 2>/dev/null && pwd); then
            echo "error: --raw-dir: expected a folder, got '${2:-}'" >&2
            exit 2
        fi
        options+=(--raw-dir "$raw_dir")
        shift
        ;;
    *)
        echo "error: unknown option '$1'; expected --force or --raw-dir DIR" >&2
        exit 2
        ;;
    esac
    shift
done

program=""
stop() { # stop CODE: end the program that is at work, then this script
    [[ -z "$program" ]] || { kill "$program" 2>/dev/null && wait "$program"; } || true
    exit "$1"
}
trap 'stop 143' TERM
trap 'stop 130' INT

has_raw() { # has_raw "a or b": true if the folder of the raw data has one of the files
    local file
    for file in ${1// or / }; do
        [[ -e "$raw_dir/$file" ]] && return 0
    done
    return 1
}

run() { # run NAME: make one stream of the table; without NAME: those whose raw files exist
    local line name raw arguments found=0
    for line in "${streams[@]}"; do
        IFS='|' read -r name raw arguments <<<"$line"
        name="${name// /}" raw="${raw# }" raw="${raw% }"
        if [[ $# -eq 0 ]]; then
            if [[ "$raw" == only ]]; then
                continue
            elif [[ "$raw" != - ]] && ! has_raw "$raw"; then
                echo "$name: skipped, $raw_dir/${raw%% or *} is absent; where to get it: dataset/README.md"
                continue
            fi
        elif [[ "$1" != "$name" && "$1" != "${name%%_task*}" ]]; then
            continue
        fi
        # In the background: bash would handle a signal only after a program in the foreground has ended.
        # shellcheck disable=SC2086  # the options are words
        python utils/dataformat_preprocess.py "${options[@]}" $arguments &
        program=$!
        wait "$program"
        found=1
        [[ $# -eq 0 ]] || break
    done
    if [[ $# -gt 0 && $found -eq 0 ]]; then
        printf -v known '%s, ' "${streams[@]%% *}"
        echo "error: unknown stream '$1'; expected one of ${known%, };" \
            "others: python utils/dataformat_preprocess.py --help" >&2
        exit 2
    fi
}

if [[ $# -eq 0 ]]; then
    run
fi
for name in "$@"; do
    run "$name"
done
