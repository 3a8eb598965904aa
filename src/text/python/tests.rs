//! Against what jinja2 3.1.6 makes of the same templates, set up as transformers does.

use std::collections::BTreeMap;
use std::path::Path;

use crate::text::{ChatTemplate, Message, RenderOptions};

fn render(source: &str) -> crate::Result<String> {
    let template = ChatTemplate::from_source(Path::new("t.jinja"), source, BTreeMap::new())?;
    Ok(template.render(&[Message::new("user", "")], &RenderOptions::default())?.text().to_owned())
}

fn all_equal(cases: &[(&str, &str)]) {
    for (source, expected) in cases {
        match render(source) {
            Ok(got) => assert_eq!(got, *expected, "{source}"),
            Err(error) => panic!("{source}: {error}"),
        }
    }
}

#[test]
fn values_are_written_as_python_writes_them() {
    all_equal(&[
        (
            "{% set x = 1e20 %}{{ 1.0 }} {{ x }} {{ 1.5e-7 }} {{ 1e16 }} {{ -0.0 }} {{ x ~ 'x' }} {{ x | string }}",
            "1.0 1e+20 1.5e-07 1e+16 -0.0 1e+20x 1e+20",
        ),
        (
            "{{ [1.0, 1e20, 1.5e-7, 1e16, true, none, 'a'] }} {{ {'a': 1e20, 'b': {'c': [none]}} | string }}",
            "[1.0, 1e+20, 1.5e-07, 1e+16, True, None, 'a'] {'a': 1e+20, 'b': {'c': [None]}}",
        ),
        (
            "{{ [\"it's\", 'say \"hi\"', 'both\\'\"', 'a\\nb\\t\\r\\\\', '\\u200b\\u00a0\\x7f\\u0301é日😀'] }}",
            "[\"it's\", 'say \"hi\"', 'both\\'\"', 'a\\nb\\t\\r\\\\', '\\u200b\\xa0\\x7f\u{301}é日😀']",
        ),
        (
            "{{ ('a',) }} {{ () }} {{ (1, 'b') }} {{ [] }} {{ {} }} {{ [missing] }} {{ ['<'|safe] }}",
            "('a',) () (1, 'b') [] {} [Undefined] [Markup('<')]",
        ),
        (
            "{{ {1: 2.0, none: true, 1.5: 'x', 'k': ()} }} {% set l = [['a'], [[]]] %}{{ l ~ l }}",
            "{1: 2.0, None: True, 1.5: 'x', 'k': ()} [['a'], [[]]][['a'], [[]]]",
        ),
        (
            "{{ [1.0, 'a'] | join('-') }} {{ 1e20 | upper }} {{ [1, 'a'] | upper }} {{ none | trim }} {{ missing | trim }}|",
            "1.0-a 1E+20 [1, 'A'] None |",
        ),
    ]);
}

#[test]
fn operators_are_pythons() {
    all_equal(&[
        (
            "{{ 'abc'[::-1] }} {{ ''[::-1] }} {{ [][::-1] }} {{ 'abcdef'[4:1:-1] }} {{ [1, 2, 3, 4, 5][-2:0:-1] }} {{ 'abc'[-2:] }}",
            "cba  [] edc [4, 3, 2] bc",
        ),
        (
            "{{ 'abc'[5:] }} {{ 'abc'[:-5] }} {{ [1, 2, 3][0::-1] }} {{ 'abc'[0:2:-1] }} {{ (1, 2, 3)[1:] }} {{ '日本語'[1:2] }} {{ [1, 2, 3][-9:9:2] }}",
            "  [1]  (2, 3) 本 [1, 3]",
        ),
        ("{{ none[1:] }}|{{ {}[1:] }}|", "||"),
        (
            "{% set a, n, t, l, p = 'a', 1, true, [1], (1,) %}{{ a + 'b' }} {{ n + t }} {{ n + 1.5 }} {{ l + [2] }} {{ p + (2,) }} {{ 'a' + 'b' }}",
            "ab 2 2.5 [1, 2] (1, 2) ab",
        ),
        (
            "{{ ('<a>'|safe) + '<b>' }} {{ '<b>' + ('<a>'|safe) }} {{ ('<'|safe) + ('<'|safe) + '\\'\"&' }} {{ ('<'|safe) ~ '<' }}",
            "<a>&lt;b&gt; &lt;b&gt;<a> <<&#39;&#34;&amp; <<",
        ),
        (
            "{{ ('<a>'|safe).strip() + '<' }} {{ ('<a>'|safe)|trim + '<' }} {{ ('<a>'|safe)|upper + '<' }} {{ ('<a>'|safe)[0:] + '<' }} {{ ('<a>'|safe)|string + '<' }}",
            "<a>&lt; <a>&lt; <A>&lt; <a>&lt; <a>&lt;",
        ),
        (
            "{% set a, b, c, d, t = -7, 7, 7.5, -1.0, true %}{{ a % 3 }} {{ b % -3 }} {{ c % 2 }} {{ d % 4 }} {{ t % 2 }} {{ b % 7 }}",
            "2 -2 1.5 3.0 1 0",
        ),
        (
            "{{ 'a%sb' % 'x' }} {{ '%s and %s' % ('a', 1) }} {{ '%d%%' % 5.9 }} {{ '%.2f' % 1.5 }} {{ '%5s|%-5s|%05d|%+d' % ('a', 'b', -42, 7) }}",
            "axb a and 1 5% 1.50     a|b    |-0042|+7",
        ),
        (
            "{{ '%x %X %o' % (255, 255, 8) }} {{ '%r' % 'a' }} {{ '%s' % [1, 'a'] }} {{ '%s' % none }} {{ '%s' % missing }}| {{ '%.1s' % 'abc' }} {{ '%(k)s' % {'k': 1e20} }}",
            "ff FF 10 'a' [1, 'a'] None | a 1e+20",
        ),
        (
            "{{ ('%s'|safe) % '<' }} {{ '%s-%s' | format('a', 1) }} {{ '%(a)s' | format(a='x') }}",
            "&lt; a-1 x",
        ),
        (
            "{% set n, a, l, t, p = 1, 'a', [1], true, (1, 2) %}{{ n < 2 < 3 }} {{ a < 'b' }} {{ l < [1, 3] }} {{ t < 2 }} {{ n >= 1.5 }} {{ l <= [1] }} {{ p > (1,) }} {{ p < (1, 3) }}",
            "True True True True False True True True",
        ),
        (
            "{% for c in 'abc' %}{{ c }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.nextitem }}{% endfor %}",
            "aFalse33bbFalse32ccTrue31",
        ),
        (
            "{% for a, b in ['xy'] %}{{ b }}{{ a }}{% endfor %} {% set a, b = 'xy' %}{{ b }} {% for x in missing %}{% endfor %}",
            "yx y ",
        ),
    ]);
}

#[test]
fn methods_are_pythons() {
    all_equal(&[
        (
            "{{ 'a.b.c'.partition('.') }} {{ 'a.b.c'.rpartition('.') }} {{ 'abc'.partition('x') }} {{ 'abc'.rpartition('x') }}",
            "('a', '.', 'b.c') ('a.b', '.', 'c') ('abc', '', '') ('', '', 'abc')",
        ),
        (
            "{{ 'abc'.index('c') }} {{ 'abcabc'.rindex('b') }} {{ 'abcabc'.find('c', 3) }} {{ 'abcabc'.rfind('c', 0, -2) }} {{ 'abc'.find('') }} {{ 'abc'.find('', 9) }} {{ '日本語'.find('語') }}",
            "2 4 5 2 0 -1 2",
        ),
        (
            "{{ 'banana'.count('an') }} {{ 'aaa'.count('a', 1) }} {{ 'ab'.count('') }} {{ [1, 2].index(2) }} {{ [1, 1].count(1) }}",
            "2 2 3 1 2",
        ),
        (
            "{{ 'abc'.startswith('b', 1) }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith('b', 0, 2) }} {{ 'abc'.startswith('', 9) }}",
            "True True True False",
        ),
        (
            "{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.removeprefix('x') }}",
            "bc ab abc",
        ),
        (
            "{{ '5'.zfill(3) }} {{ '-5'.zfill(4) }} {{ '+5'.zfill(2) }} {{ 'a'.center(5) }}| {{ 'ab'.center(5, '*') }} {{ 'a'.center(4, '*') }} {{ 'a'.ljust(3) }}| {{ 'a'.rjust(3, '.') }} {{ 'abc'.center(-1) }}",
            "005 -005 +5   a  | **ab* *a** a  | ..a abc",
        ),
        (
            "{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a b c'.split(' ', 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ ' a  b  c '.split(none, 1) }} {{ 'a,b,c'.split(',', maxsplit=1) }} {{ 'a b'.split(none, 0) }}",
            "['a', 'b', '', 'c'] ['a', 'b'] ['a', 'b c'] [] [''] ['a', 'b  c '] ['a', 'b,c'] ['a b']",
        ),
        (
            "{{ 'a b c'.rsplit(none, 1) }} {{ ' a b '.rsplit() }} {{ 'a,b,c'.rsplit(',', 1) }} {{ 'a,b'.rsplit(',') }} {{ 'a,b,c'.split(',', -1) }}",
            "['a b', 'c'] ['a', 'b'] ['a,b', 'c'] ['a', 'b'] ['a', 'b', 'c']",
        ),
        (
            "{{ 'a\\nb\\r\\nc\\u2028d\\n\\n'.splitlines() }} {{ 'a\\n\\rb'.splitlines(true) }} {{ ''.splitlines() }} {{ 'a\\r\\n'.splitlines(keepends=true) }}",
            "['a', 'b', 'c', 'd', ''] ['a\\n', '\\r', 'b'] [] ['a\\r\\n']",
        ),
        (
            "{{ '\\x1c x '.strip() | length }} {{ 'xax'.strip('x') }} {{ 'xxa'.lstrip('x') }} {{ 'abcb'.rstrip('bc') }} {{ '\\u200bx'.strip() | length }} {{ ' x '.strip(none) }}|",
            "1 a a a 2 x|",
        ),
        (
            "{{ \"it's 3rd\".title() }} {{ 'aBc'.swapcase() }} {{ 'Straße'.casefold() }} {{ ','.join(['a', 'b']) }} {{ ','.join('abc') }} {{ '-'.join({'a': 1, 'b': 2}) }}",
            "It'S 3Rd AbC strasse a,b a,b,c a-b",
        ),
        ("{{ {'a': 1}.copy() }} {{ [1].copy() }} {{ {'a': 1}.get('b', 2) }}", "{'a': 1} [1] 2"),
    ]);
}

#[test]
fn filters_and_tests_are_jinja2s() {
    all_equal(&[
        (
            "{{ missing | length }} {{ 'é😀' | length }} {{ {'a': 1} | count }} {{ missing | list }} {{ 'abc' | list }} {{ missing | items | list }} {{ {'a': 1} | items | list }}",
            "0 2 1 [] ['a', 'b', 'c'] [] [('a', 1)]",
        ),
        (
            "{{ none is iterable }} {{ missing is iterable }} {{ 1 is iterable }} {{ 's' is iterable }} {{ {} is iterable }} {{ [] is iterable }}",
            "False True False True True True",
        ),
        (
            "{{ none is sequence }} {{ missing is sequence }} {{ 's' is sequence }} {{ {} is sequence }} {{ () is sequence }} {{ 1 is sequence }}",
            "False True True True True False",
        ),
        (
            "{{ {} is mapping }} {{ namespace() is mapping }} {{ range is callable }} {{ 1 is callable }} {{ 'a' is callable }}",
            "True False True False False",
        ),
        (
            "{{ '1.5' | float }} {{ 'x' | float }} {{ 'x' | float(2.5) }} {{ none | float }} {{ 1 | float }} {{ true | float }} {{ 'x' | float(default=1) }}",
            "1.5 0.0 2.5 0.0 1.0 1.0 1",
        ),
        (
            "{{ 'aaa' | replace('a', 'b', 2) }} {{ 123 | replace(1, 2) }} {{ 'abc' | replace('', '-') }} {{ 'aa' | replace('a', 'b', count=1) }}",
            "bba 223 -a-b-c- ba",
        ),
        (
            "{{ 'a b  c_d' | wordcount }} {{ 'a' | center(5) }}| {{ '<a>&\"\\'' | e }} {{ ('<'|safe) | escape }} {{ ('<'|safe) | forceescape }} {{ ('<'|e) + '<' }}",
            "3   a  | &lt;a&gt;&amp;&#34;&#39; < &lt; &lt;&lt;",
        ),
        (
            "{{ 'a\\nb\\n\\nc' | indent }} {{ 'a\\nb' | indent(2, true) }} {{ 'a\\n\\nb' | indent(width=2, first=true, blank=true) }} {{ 'a\\nb\\n' | indent(2) }}| {{ 'a\\nb' | indent('> ') }} {{ '' | indent(2, true) }}|",
            "a\n    b\n\n    c   a\n  b   a\n  \n  b a\n  b\n| a\n> b   |",
        ),
        (
            "{{ [1, none, 'a'] | join(', ') }} {{ 'abc' | join('-') }} {{ {'a': 1} | join }} {{ [{'a': 1}, {'a': 2}] | join('-', attribute='a') }} {{ missing | join(',') }}|",
            "1, None, a a-b-c a 1-2 |",
        ),
        (
            "{{ 'aBC' | capitalize }} {{ none | lower }} {{ true | upper }} {{ 'xax' | trim('x') }} {{ 5 | string + 'x' }}",
            "Abc none TRUE a 5x",
        ),
    ]);
}

#[test]
fn what_python_refuses_is_refused() {
    for source in [
        "{{ none | list }}",
        "{% for x in none %}{% endfor %}",
        "{{ none | join(',') }}",
        "{{ none | length }}",
        "{{ 1 | length }}",
        "{{ none | items | list }}",
        "{% set l = [1] %}{{ l + (2,) }}",
        "{% set a = 'a' %}{{ a + 1 }}",
        "{{ [1] + none }}",
        "{{ missing + 'a' }}",
        "{{ missing[1:] }}",
        "{{ 'abc'[::0] }}",
        "{% set n = 1 %}{{ n < 'a' }}",
        "{% set n = none %}{{ n < 1 }}",
        "{{ missing > 1 }}",
        "{{ '%d' % 'a' }}",
        "{{ '%s %s' % ('a',) }}",
        "{{ '%s' % (1, 2) }}",
        "{{ '%' % 1 }}",
        "{% set n = 1 %}{{ n % 0 }}",
        "{{ 'a' | format(1) }}",
        "{{ 'abc'.index('z') }}",
        "{{ 'abc'.split('') }}",
        "{{ 'abc'.partition('') }}",
        "{{ 'a'.center(5, 'ab') }}",
        "{{ ','.join([1]) }}",
        "{{ [1].append(2) }}",
        "{{ [1].index(2) }}",
    ] {
        assert!(render(source).is_err(), "{source}: {:?}", render(source));
    }
}

#[test]
fn what_python_makes_is_bounded() {
    for source in [
        "{{ 'a'.center(n) }}",
        "{{ 'a'.zfill(n) }}",
        "{{ 'a' | center(n) }}",
        "{{ 'a' | indent(n) }}",
        "{{ '%1000s' % 'a' }}",
        "{{ s | replace('a', 'bb') }}",
        "{{ s | join('bb') }}",
        "{{ s | list }}",
        "{{ l + l }}",
        "{{ s + s }}",
        "{{ '%s%s' % (s, s) }}",
        "{{ s | indent(200, true, true) + s }}",
    ] {
        let large = "{% set n = 9000000 %}{% set s = 'a' * (n - 1000000) %}{% set l = [1] * (n // 60) %}";
        let error = render(&(large.to_owned() + source)).unwrap_err().to_string();
        assert!(error.contains("too large") || error.contains("not supported"), "{source}: {error}");
    }
}
