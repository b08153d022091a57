//! Days of the Gregorian calendar as numbers, by which dates are moved and compared.

/// Days since 1 March of year 0 in the Gregorian calendar, where a year begins with March and leap days end it.
pub(crate) fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1
}

/// The date of such a day.
pub(crate) fn civil(day: i64) -> (i64, i64, i64) {
    let mut year = day * 400 / 146_097 + 1;
    while days(year, 3, 1) > day {
        year -= 1;
    }
    let of_year = day - days(year, 3, 1);
    let month = (of_year * 5 + 2) / 153;
    let day = of_year - (month * 153 + 2) / 5 + 1;
    if month < 10 {
        (year, month + 3, day)
    } else {
        (year + 1, month - 9, day)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_four_centuries_is_counted_and_found_again() {
        let mut expected = days(1800, 3, 1);
        assert_eq!(civil(expected), (1800, 3, 1));
        let (mut year, mut month, mut day) = (1800, 3, 1);
        for _ in 0..146_097 {
            assert_eq!(
                (days(year, month, day), civil(expected)),
                (expected, (year, month, day))
            );
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            (day, expected) = (day + 1, expected + 1);
            if day > length {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
    }
}
