#!/bin/sh
# Stands in for Tesseract in tests. The "language" it is asked for says how it behaves: `stdin stdout -l LANGUAGE …`.
head='level	page_num	block_num	par_num	line_num	word_num	left	top	width	height	conf	text'
case $4 in
words | words+fails)
    # With two languages, as Tesseract answers that lacks the model of the second.
    # Twice the place of a small picture, as it comes at twice its size.
    cat >/dev/null
    printf '%s\n' "$head" '1	1	0	0	0	0	0	0	128	160	-1	' '4	1	1	1	1	0	20	12	90	20	-1	' \
        '5	1	1	1	1	1	20	12	60	20	91.5	DOE^JANE' '5	1	1	1	1	2	90	12	20	20	96	L'
    ;;
last_arguments)
    # Whether it got what it needs, and nothing of our environment.
    cat >/dev/null
    [ "$*" = 'stdin stdout -l last_arguments --psm 11 --dpi 150 -c thresholding_method=2 tsv' ] || exit 3
    [ -z "$HOME$USER$CARGO" ] && [ "$OMP_THREAD_LIMIT" = 1 ] || exit 4
    # In units of 1024 bytes, of seconds, and of 512 bytes.
    [ "$(ulimit -v)" = 524288 ] && [ "$(ulimit -t)" = 60 ] && [ "$(ulimit -f)" = 0 ] || exit 5
    [ "$(ulimit -H -t)" = 61 ] || exit 6
    printf '%s\n' "$head"
    ;;
something_else)
    cat >/dev/null
    echo 'Empty page!!'
    ;;
fails)
    exit 1
    ;;
hangs)
    # What it starts has to be ended too: that holds the pipe.
    sleep 600 &
    wait
    ;;
busy)
    while :; do :; done
    ;;
without_end)
    exec yes
    ;;
esac
